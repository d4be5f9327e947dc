"""The command of a verb: its options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

from promptmill.cli.options import add_shared
from promptmill.cli.parser import Parser, add_table
from promptmill.core.feature import later, part
from promptmill.core.values import JsonDict
from promptmill.features.verbs.record import VerbRecord
from promptmill.options.option import Option


def add_options(verb: VerbRecord, parser: Parser) -> None:
    """Add the options of a verb to the parser of its command."""
    for heading, options in verb.options.items():
        title, _, about = heading.partition(": ")
        group = parser.add_argument_group(title, about or None) if heading else parser
        alternatives: Mapping[str, Any] = {
            name: exclusive
            for names in verb.required
            if len(names) > 1 and not {*names}.isdisjoint(option.name for option in options)
            for exclusive in [group.add_mutually_exclusive_group(required=True)]
            for name in names
        }
        for option in options:
            _add(verb, option, alternatives.get(option.name, group))
    if verb.model:
        add_shared(parser, named=[] if verb.model == "model" else [f"--{verb.model}"])
    if verb.examples:
        parser.show_examples(*part(verb.examples))
    parser.only_with = verb.only_with
    parser.set_defaults(
        unconfigured=partial(later("promptmill.features.verbs.command_call:run"), verb), names_next=True
    )


def _add(verb: VerbRecord, option: Option, group: argparse._ActionsContainer) -> None:
    if option.flag is None or option.name not in verb.positional:
        add_table(group, [option], required=[option.name] in verb.required)
        return
    several: JsonDict = {"nargs": "+"} if option.type == list[str] else {}
    group.add_argument(option.stored, metavar=option.flag.metavar, help=option.words_on("flag", {}), **several)
