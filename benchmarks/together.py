"""`python -m benchmarks.together [TABLE] [--numbers 1 2 5 10 20] [-- OPTIONS OF promptmill bulk]`: rows in one request.

TABLE is a CSV with the columns `text` and `label`, by default `mails.csv` beside this file: 80 mails that we wrote,
with four labels. The options name the model; without any, it is the embedded one, a toy of 135M parameters whose
figures say nothing about a model for real work:

    python -m benchmarks.together banking.csv -- --provider openai --model gpt-6-luna --key-env OPENAI_API_KEY

For each number of rows in a request, it prints what a row took, how many labels are those of a request for each row,
and how many are right; below the table, how many would be right if each row had the most frequent label.

`python -m benchmarks.together --cpu [--pairs 3] [--rows 50000]` measures the CPU of whole jobs instead, one row in a
request and 20 in turn, against an endpoint that answers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from benchmarks.client import OUT, ROOT
from benchmarks.jobs_store import report
from benchmarks.measure import Row, interleaved, ratio

_MAILS = Path(__file__).with_name("mails.csv")
_EMBEDDED = ("--backend", "openvino")
_PROMPT = "What is this mail about? {{text}}"
_NUMBERS = (1, 2, 5, 10, 20)
_NAME = re.compile(rb'\{\\"id\\":\\"(\w+)\\"')
"""The id of a record in the JSON of a request."""


class Answered(NamedTuple):
    """A job's answers, and what it took."""

    labels: list[str]
    status: dict[str, Any]
    seconds: float


def answered(table: Path, labels: Sequence[str], number: int, options: Sequence[str], folder: Path) -> Answered:
    """Answer the rows of a table, so many in a request. Raises `CalledProcessError`."""
    out = folder / f"{number}.csv"
    words = ["bulk", str(table), str(out), "--prompt", _PROMPT, "--choices", ",".join(labels), "--quiet", "--json"]
    words += ["--together", str(number), "--temperature", "0", "--max-tokens", "20", "--state", str(folder / "jobs")]
    done = subprocess.run(
        [sys.executable, "-m", "promptmill", *words, *options], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    status = json.loads(done.stdout)
    with out.open(encoding="utf-8", newline="") as file:
        return Answered([row["answer"] for row in csv.DictReader(file)], status, status["seconds"])


def table_of(path: Path, numbers: Sequence[int], options: Sequence[str]) -> None:
    """Print a line for each number of rows in a request."""
    with path.open(encoding="utf-8", newline="") as file:
        right = [row["label"] for row in csv.DictReader(file)]
    labels, rows = sorted({*right}), len(right)
    print("| rows in one | requests | rows alone | prompt tokens a row | answer tokens a row | as with 1 | right | s |")
    print("|---|---|---|---|---|---|---|---|")
    alone: list[str] = []
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        for number in numbers:
            found = answered(path, labels, number, options, Path(name))
            alone = alone or found.labels
            status = found.status
            single = status["together"]["alone"] if "together" in status else rows
            each = [status[f"{kind}_tokens"] / rows for kind in ("prompt", "completion")]
            shares = [_share(found.labels, others) for others in (alone, right)]
            print(
                f"| {number} | {status['requests']} | {single} | {each[0]:.1f} | {each[1]:.1f} | {shares[0]:.0%} | "
                f"{shares[1]:.0%} | {found.seconds:.1f} |",
                flush=True,
            )
    ((_, most),) = Counter(right).most_common(1)
    print(f"\n{rows} rows, {len(labels)} labels; {most / rows:.0%} are right if each row has the most frequent label.")


def _share(labels: Sequence[str], others: Sequence[str]) -> float:
    return sum(mine == other for mine, other in zip(labels, others, strict=True)) / len(others)


async def cpu(pairs: int, rows: int) -> Row:
    """CPU of a job of 20 rows in a request over that of one row in a request."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        table = Path(name) / "in.csv"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows(
                [("text",), *((f"My parcel of order {at} is late again",) for at in range(rows))]
            )

        async def job(number: int) -> float:
            before, options = _children_s(), ("--base-url", url, "--model", "bench", "--overwrite")
            with tempfile.TemporaryDirectory(dir=name) as folder:
                await asyncio.to_thread(answered, table, ("yes", "no"), number, options, Path(folder))
            return (_children_s() - before) / rows * 1e6

        found = await interleaved(pairs, together=lambda: job(20), alone=lambda: job(1))
    server.close()
    value, spread = ratio(found["together"], found["alone"])
    each = " and ".join(f"{sorted(found[side])[pairs // 2]:.0f}" for side in found)
    what = f"CPU of a job of {rows:,} rows, 20 in a request over one"
    return Row("together", what, value, 1.0, spread=spread, detail=f"{each} µs a row")


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer `yes` to each row of the requests of a connection."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(size[1])) if size is not None else b""
            names = _NAME.findall(body)
            items = [{"id": one.decode(), "answer": "yes"} for one in names]
            said = json.dumps({"answers": items} if items else {"answer": "yes"})
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            usage = {"prompt_tokens": len(body) // 4, "completion_tokens": len(said) // 4}
            sent = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(sent))
            writer.write(sent)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the table, or the CPU."""
    parser = argparse.ArgumentParser("python -m benchmarks.together", description=__doc__)
    parser.add_argument("table", type=Path, nargs="?", default=_MAILS)
    parser.add_argument("--numbers", type=int, nargs="+", default=_NUMBERS)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    words, options = sys.argv[1:], [*_EMBEDDED]
    if "--" in words:
        at = words.index("--")
        words, options = words[:at], words[at + 1 :]
    arguments = parser.parse_args(words)
    OUT.mkdir(exist_ok=True)
    if arguments.cpu:
        print(report(uvloop.run(cpu(arguments.pairs, arguments.rows))))
    else:
        table_of(arguments.table.resolve(), arguments.numbers, options)


if __name__ == "__main__":
    main()
