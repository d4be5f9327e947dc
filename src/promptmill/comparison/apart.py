"""A comparison for a call: it reads files of other people in a process of its own, with limited memory and time.

**The attacker** is an agent that has read a poisoned page and chooses files and columns. **The harm**: it
reads keys and passwords in rows. Files pass the rule on files, rows with secrets are left out, and figures that hold
one are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from promptmill.comparison import figures
from promptmill.comparison.call import order_of, rows_of
from promptmill.core.errors import input_error
from promptmill.core.secret_text import find_field
from promptmill.core.values import JsonDict
from promptmill.core.wording import LONGEST_SHOWN, MOST_SHOWN, cut
from promptmill.jobs.caller import Caller
from promptmill.jobs.inputs.formats import SUFFIXES
from promptmill.jobs.manage import detached
from promptmill.jobs.manage.running_jobs import RunningJobs
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.folder import ID
from promptmill.jobs.store.index import JobFolders
from promptmill.system import runtime
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule

_MODULE = "promptmill.comparison.apart"
_COMPUTING_S = 300  # as for the validation of a file


async def compared(
    jobs: RunningJobs, caller: Caller, files: Sequence[str], *, gold: str | None, limit: int, options: JsonDict
) -> JsonDict:
    """Return the figures of a comparison and the first `limit` rows that differ, as a tool returns them.

    `files`: paths or ids of jobs. `gold`, `options`: see `order_of`. Raises `PromptmillError`.
    """
    named = [*(options.get("field") or ()), options.get("by") or "", (gold or "").rpartition(":")[2]]
    if secret := find_field(named):
        raise input_error(f"The column {secret} {MAY_HOLD_SECRETS}, by its name.")
    paths = [
        str(jobs.output_of(name, caller) if ID.fullmatch(name) and "." not in name else jobs.allowed(name, "files"))
        for name in files
    ]
    call = partial(
        _compare,
        files=paths,
        gold=None if gold is None else _resolved(jobs, gold),
        options=options,
        limit=limit,
        folders=jobs.folders,
        rule=jobs.rule,
    )
    return await jobs.apart(call, ", ".join(Path(path).name for path in paths), _MODULE)


def _resolved(jobs: RunningJobs, gold: str) -> str:
    path, colon, column = gold.rpartition(":")
    if gold.endswith(tuple(SUFFIXES)):
        return str(jobs.allowed(gold, "gold"))
    return f"{jobs.allowed(path, 'gold')}{colon}{column}" if path.endswith(tuple(SUFFIXES)) else gold


def _compare(
    _: Work,
    *,
    files: list[str],
    gold: str | None,
    options: dict[str, Any],
    limit: int,
    folders: JobFolders,
    rule: FileRule,
) -> dict[str, Any]:
    runtime.limit_computing(_COMPUTING_S)
    # only the file of right answers that passed the rule is read: another text is a column
    is_file = gold is not None and Path(gold.rpartition(":")[0] or gold).is_absolute()
    rows = rows_of(files, order_of({**options, "gold": gold}), folders, may_read_gold=is_file or not rule.is_guarded)
    found = figures.figures(rows, most=limit)
    shown = found.pop("differing")
    for file in found["files"]:
        file.pop("made", None)
    finder = rule.finder if rule.is_guarded else None
    if finder is not None and (kind := finder.find(orjson.dumps(found))):
        raise input_error(f"The values of these files hold {kind}; compare another field.")
    found["rows_compared"] = found.pop("rows")
    bounded = [_short(row) for row in shown]
    if finder is not None:
        bounded = [
            {"row": row["row"], "left_out": f"The row {MAY_HOLD_SECRETS}."}
            if find_field(row["own"]) or finder.find(orjson.dumps(row))
            else row
            for row in bounded
        ]
    return {**_short(found), "rows": bounded, "next_offset": None}


def _short(value: Any) -> Any:
    match value:
        case str():
            return cut(value, LONGEST_SHOWN)
        case dict():
            return {name: _short(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_short(inner) for inner in value[:MOST_SHOWN]]
    return value


_STEPS = {_compare.__name__: _compare}

if __name__ == "__main__":
    sys.exit(detached.main(_STEPS))
