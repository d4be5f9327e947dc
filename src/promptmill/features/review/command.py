"""`promptmill review`: the rows of a job that a person should check, and the labels that the person gives."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import orjson

from promptmill.cli.error_words import option_of
from promptmill.cli.parser import refuse
from promptmill.cli.terminal import OK, SOME_FAILED, say
from promptmill.core.errors import input_error, worded
from promptmill.core.wording import counted
from promptmill.features.review import ROWS, review_page
from promptmill.features.review.reviewed import LABEL, NO_DOUBT, Review, review, take
from promptmill.jobs.columns.column_names import VARIANT
from promptmill.jobs.inputs.short_forms import labels_of
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.system.safe_open import home_expanded


def run(arguments: argparse.Namespace) -> int:
    """Write a review, or store its labels. Return 0; 1 if some labels are refused."""
    folder = JobFolders.from_environ().at(arguments.job)
    labels = () if arguments.choices is None else tuple(labels_of(arguments.choices).texts)
    if arguments.take is not None:
        refuse(
            *(
                (getattr(arguments, name), f"--{name}", "cannot be used with --take.")
                for name in ("output", "rows", "sample", "open")
            )
        )
        taken = take(folder, home_expanded(arguments.take), labels)
        if arguments.json:
            say(orjson.dumps(taken.as_dict()).decode())
        else:
            say(f"{taken}.")
            for problem in taken.refused:
                say(problem, sys.stderr, wrap=True)
        return SOME_FAILED if taken.refused else OK
    given = _default(folder) if arguments.output is None else home_expanded(arguments.output)
    suffix = given.suffix.lower()
    if suffix not in {*review_page.PAGES, review_page.WORKBOOK}:
        raise input_error(f"{given.name} is no name for a review: it ends in .html or .xlsx.")
    refuse((arguments.rows and arguments.sample, "--rows", "cannot be used with --sample; leave one of them out."))
    refuse(
        (arguments.open and suffix == review_page.WORKBOOK, "--open", "shows a page; leave -o out, or name a .html.")
    )
    most, drawn = arguments.rows or ROWS, arguments.sample
    found = review(folder, drawn or most, labels, at_random=drawn is not None)
    if not found.rows:
        known = worded(NO_DOUBT, option_of)
        none = {"file": None, "rows": 0, "labels": list(found.labels)}
        say(orjson.dumps(none).decode() if arguments.json else f"no row of {found.job_id} is in doubt.\n{known}")
        return OK
    made = review_page.write(given, found, _command(found))
    path = given.absolute()
    if arguments.json:
        say(orjson.dumps({"file": str(path), "rows": len(found.rows), "labels": list(found.labels)}).decode())
    else:
        say(_words(found, path))
    if arguments.open and made is not None:
        made.show()
    return OK


def _default(folder: Folder) -> Path:
    spec = folder.known_spec()
    if not spec.output.format:
        return Path(f"{spec.job_id}.review.html")
    return spec.output.path.with_name(f"{spec.output.path.name}.review.html")


def _command(found: Review) -> str:
    """Return the command that stores a page's decisions; with several answers per row, it measures the answers."""
    saved = review_page.saved_as(found)
    taken = "review", found.job_id, "--take", saved
    measured = "compare", found.job_id, "--by", VARIANT, "--gold", f"{saved}:{LABEL}"
    return shlex.join(["promptmill", *(taken if found.can_take else measured)])


def _words(found: Review, path: Path) -> str:
    named = ", ".join(f"{count:,} {why}" for why, count in found.reasons.items())
    return f"{counted(len(found.rows), 'row')} to review ({named}): {path}"
