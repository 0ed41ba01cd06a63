"""Parallel layouts: which part of a model a device holds, and what devices send one another."""
