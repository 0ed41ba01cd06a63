"""Doctests of these files are collected only where triton can be imported."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") and find_spec("torch") else ["*.py"]
