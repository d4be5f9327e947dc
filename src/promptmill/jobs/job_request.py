"""What somebody wants done: one file into another, and how."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from promptmill.core.errors import input_error

PART = re.compile(r"\.part-(\d+)-of-(\d+)")
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")
# A share of failures says nothing before this many rows are settled.
_FIRST_ROWS = 20


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many failures end a run: more than `count`, or more than `percent` of what is settled."""

    count: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """Read `100` or `5%`. Raises `PromptmillError` (`invalid_input`)."""
        if re.fullmatch(r"\d+", text):
            return cls(count=int(text))
        if (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)) and float(found[1]) <= 100:
            return cls(percent=float(found[1]))
        raise input_error(f"--max-failures {text[:20]!r} is neither a number nor a share such as 5%.")

    def exceeded(self, failed: int, settled: int) -> bool:
        """Return whether `failed` of `settled` rows are too many."""
        if self.count is not None and failed > self.count:
            return True
        return self.percent is not None and settled >= _FIRST_ROWS and failed > settled * self.percent / 100


class Replication(BaseModel):
    """A Ray cluster to answer on: its address, how many replicas of the model, and what each takes of its node."""

    model_config = ConfigDict(frozen=True)

    address: str
    replicas: int = 1
    gpus: float = 0
    cpus: float = 1


class JobRequest(BaseModel):
    """One job and how to run it this time."""

    model_config = ConfigDict(frozen=True)

    input: Path
    """A file, a folder or a pattern."""
    more: tuple[Path, ...] = ()
    """Further ones, whose rows come behind."""
    output: Path
    prompt_template: str | None = None
    """What to ask of every row, with its fields in double braces."""
    prompt_column: str | None = None
    """The field that is asked, where it is not called `prompt`."""
    id_column: str | None = None
    """The field that tells rows apart, each of which has one of its own."""
    system_prompt: str = ""
    limit: int | None = None
    """Only the first rows, this many."""
    max_failures: str | None = None
    max_cost: float | None = None
    """Most that all runs together may spend; None: as the configuration says."""
    dedupe: bool = False
    overwrite: bool = False
    """Start anew and replace whatever is at `output`."""
    anew: bool = False
    """Start anew, but replace only an output that this job made itself."""
    replace: bool = False
    """Replace whatever is at `output`, but go on with the job."""
    retry_failed: bool = False
    retry_truncated: bool = False
    """Answer rows again whose answer was cut short by `max_tokens`."""
    reuse: bool = False
    """Take the input as it is now: only rows that ask something new are asked."""
    reuse_from: Path | None = None
    """The database of another job, whose answers count for rows that ask the same."""
    accept_change: bool = False
    """Go on under other settings than the job was begun with, which is noted in every later row."""
    over_mcp: bool = False
    """Whether a call over MCP asks, which has arguments and no options: for what is said about it."""
    by_id: bool = False
    """Go on under no other settings than the job was begun with, whatever it has answered."""
    ray: Replication | None = None
    """Where it is answered, if not here."""
    shard: str | None = None
    """`3/16`: only the third of sixteen ranges of the input, into a part file."""

    @property
    def cut(self) -> tuple[int, int] | None:
        """`shard`, read. Raises `PromptmillError` (`invalid_input`)."""
        if self.shard is None:
            return None
        found = _SHARD.fullmatch(self.shard)
        if found is None:
            raise input_error(f"--shard {self.shard[:20]!r} is not I/N, such as 3/16, from 1 on.")
        at, count = int(found[1]), int(found[2])
        if not 1 <= at <= count:
            wrong = f"{at} is more than {count}" if at else "the first is 1"
            raise input_error(f"--shard {self.shard}: {wrong}; the {count} shards are 1/{count} to {count}/{count}.")
        if self.limit is not None:
            raise input_error("--shard goes without --limit.")
        return at, count

    @property
    def target(self) -> Path:
        """The file that the job writes: `output`, or the shard's part of it."""
        cut = self.cut
        if cut is None or PART.search(self.output.name):
            return self.output
        at, count = cut
        return self.output.with_name(f"{self.output.name}.part-{at:0{len(str(count))}}-of-{count}")

    @property
    def whole_output(self) -> Path:
        """The output that all shards make together."""
        return self.output if self.shard is None else self.output.with_name(PART.sub("", self.output.name))

    @property
    def failure_limit(self) -> FailureLimit | None:
        """`max_failures`, read."""
        return None if self.max_failures is None else FailureLimit.parse(self.max_failures)
