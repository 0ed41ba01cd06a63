"""Facts that a device does not reveal, asked for where someone sits at a terminal; elsewhere they stay marked.

A profile of measured peaks is right, but its efficiencies are shares of what the fastest probe reached; with the
datasheet's figures they are shares of those, as in shipped profiles. What a device never tells (its power limit, links
that nothing ran over) is `unknown` without an answer. A device that has a shipped profile is asked nothing about.
"""

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from costmodel.errors import BadInput
from costmodel.report.output import note
from costmodel.units import parse_quantity
from validation.cuda_probes import DTYPES
from validation.device import DeviceFacts
from validation.measured_profile import UNKNOWN
from validation.runners import has_fp8


class Question(NamedTuple):
    """A number of a profile: its path, its name on a datasheet, its unit, and what holds without an answer."""

    path: str
    text: str
    unit: str
    otherwise: str


Ask = Callable[[Question], str]
"""The answer as text with its unit, or the question's `otherwise`."""


def questions(stated: DeviceFacts) -> list[Question]:
    """What to ask of a device without a shipped profile, in a datasheet's order; nothing of any other."""
    if stated.kind != "cuda" or stated.profile:
        return []
    dtypes = [dtype for dtype in DTYPES if dtype != "fp32" and (dtype != "fp8" or has_fp8(stated))]
    found = [Question(f"compute.tensor.{dtype}", f"dense {dtype}", "FLOP/s", "measured") for dtype in dtypes]
    if not stated.bandwidth:
        found.append(Question("memory.hbm.bandwidth", "memory bandwidth", "B/s", "measured"))
    return [
        *found,
        Question("links.host.bandwidth", "bandwidth to its host, per direction", "B/s", UNKNOWN),
        Question("links.scale_out.bandwidth", "network bandwidth per device and direction", "B/s", UNKNOWN),
        Question("power.tdp", "power limit (TDP)", "W", UNKNOWN),
    ]


def asked(stated: DeviceFacts, ask: Ask) -> dict[str, str]:
    """The answers by path, without those that leave a number as it is."""
    wanted = questions(stated)
    if wanted:
        note(
            f"{stated.name} has no shipped profile. What does its datasheet say? Enter leaves what stands in brackets."
        )
    answers = {question: ask(question).strip() for question in wanted}
    return {question.path: text for question, text in answers.items() if text and text != question.otherwise}


def answered(raw: Mapping[str, Any], answers: Mapping[str, str], stated: DeviceFacts) -> dict[str, Any]:
    """The profile with these answers, each with its source and marked as not verified.

    A peak that a probe exceeded is not believed, because no efficiency is above 1: the measured one stays, with a note.
    """
    told = deepcopy(dict(raw))
    units = {question.path: question.unit for question in questions(stated)}
    for path, text in answers.items():
        *parents, leaf = path.split(".")
        place: Any = told
        for parent in parents:
            place = place[parent]
        measured = place.get(leaf, UNKNOWN)
        if measured != UNKNOWN and parse_quantity(str(measured), units[path]) > parse_quantity(text, units[path]):
            note(f"note: {path}: {text} is less than the measured {measured}, which stays")
            continue
        place[leaf] = text
        told["sources"] = {**told["sources"], path: f"given when {stated.name} was calibrated, {stated.date}"}
        told["unverified"] = list(dict.fromkeys([*(told.get("unverified") or []), path]))
    return told


def at_a_terminal() -> bool:
    """Whether someone can be asked: neither questions, answers nor results go through a pipe or a file."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def by_prompt(question: Question) -> str:
    """Ask on the terminal until the answer is a quantity, or nothing."""
    import typer

    def checked(text: str) -> str:
        if text != question.otherwise:
            try:
                parse_quantity(text, question.unit)
            except BadInput as error:
                raise typer.BadParameter(str(error)) from None
        return text

    return str(typer.prompt(f"  {question.text}", default=question.otherwise, value_proc=checked, err=True))
