"""The status of a job as another program may have damaged it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

WRONG: list[Any] = ["\x1b[2J", [1], {"a": {}}, -1e300, 10**40, 1e300, True]


def write_wrong(database: Path, value: Any) -> None:
    """Write `value` in place of every value of the job's status and course."""
    with sqlite3.connect(database) as other:
        for name in ("status", "course"):
            ((text,),) = other.execute("SELECT value FROM job WHERE name = ?", (name,))
            wrong = dict.fromkeys(json.loads(text), value) | {"code": value, "waiting": value, "cost": value}
            other.execute("UPDATE job SET value = ? WHERE name = ?", (json.dumps(wrong), name))
    other.close()
