"""`python -m benchmarks [NAMES]`: measure, print the table, write benchmarks/out/results.json and the plot."""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import time
from collections.abc import Awaitable, Callable

import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import (
    ceiling,
    cpu_engines,
    crowd,
    engine,
    first_answer,
    hf_batching,
    http_crowd,
    jobs_finished,
    jobs_floor,
    jobs_memory,
    jobs_store,
    limits,
    metrics,
    openai_server,
    pictures,
    plot,
    questions,
    ray_replicas,
    serving,
    structured,
    throughput,
    vllm_engine,
    windows,
    workers,
)
from benchmarks.client import OUT, ROOT
from benchmarks.field import Field, field
from benchmarks.measure import Row

Case = Callable[[Field, int], Awaitable[list[Row]]]
CASES: dict[str, Case] = {
    "ceiling": ceiling.ceiling,
    "startup": serving.startup,
    "call": serving.call,
    "latency": throughput.latency,
    "cpu": throughput.cpu,
    "tls": throughput.tls,
    "bursts": throughput.bursts,
    "rise": throughput.rise,
    "large": crowd.large,
    "four": crowd.four,
    "beside": crowd.small_beside_huge,
    "images": pictures.images,
    "window": limits.window,
    "slow_window": windows.slow,
    "random_429": windows.random_refusals,
    "own_server": windows.own_server,
    "hedge": windows.hedge,
    "rates": limits.rates,
    "engine": engine.engine,
    "first": first_answer.first_answer,
    "hf": hf_batching.batching,
    "structured": structured.structured,
    "mask": structured.mask,
    "questions": questions.questions,
    "cpu_engines": cpu_engines.cpu_engines,
    "vllm_chat": vllm_engine.vllm_chat,
    "vllm_calls": vllm_engine.vllm_calls,
    "vllm_settings": vllm_engine.vllm_settings,
    "workers": workers.workers,
    "http_crowd": http_crowd.http_crowd,
    "openai_server": openai_server.openai_server,
    "metrics": metrics.cost,
    "jobs_store": jobs_store.cost,
    "jobs_floor": jobs_floor.over_floor,
    "jobs_memory": jobs_memory.memory,
    "jobs_finished": jobs_finished.finished,
    "ray_one": ray_replicas.one,
    "ray_two": ray_replicas.two,
    "ray_driver": ray_replicas.driver,
    "curve": throughput.curve,
}
PLOT = ROOT / "docs" / "performance.svg"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(CASES)}; default: all")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved rounds per ratio, at least 5 for a claim")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CASES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    rows = uvloop.run(_run(arguments.names or list(CASES), arguments.pairs))
    found = {"measured": measured(), "python": platform.python_version(), "load": os.getloadavg()}
    results = OUT / "results.json"
    before = orjson.loads(results.read_bytes()) if results.exists() else {}
    for name in arguments.names or CASES:  # what was not run again stays
        before[name] = found | {"rows": [row.as_json() for row in rows if row.case == name]}
    results.write_bytes(orjson.dumps(before, option=orjson.OPT_INDENT_2))
    if points := [row.raw for row in rows if row.case == "curve"]:
        PLOT.parent.mkdir(exist_ok=True)
        PLOT.write_text(plot.svg(points), encoding="utf-8")


async def _run(names: list[str], pairs: int) -> list[Row]:
    console = Console(width=160)
    rows: list[Row] = []
    async with field() as around:
        for name in names:
            console.print(f"… {name}", style="dim")
            rows += (fresh := await CASES[name](around, pairs))
            for row in fresh:
                console.print(f"   {row.what}: {_value(row)}  {_spread(row)}  {row.detail}", highlight=False)
    table = Table("case", "what", "value", "quartiles of the pairs", "target", "met", "ours / theirs")
    for row in rows:
        met = "" if row.met is None else "yes" if row.met else "NO"
        sign = "≤" if row.better == "<=" else "≥"
        target = "" if row.target is None else f"{sign} {row.target:.3g}{'' if row.unit == 'x' else ' ' + row.unit}"
        table.add_row(row.case, row.what, _value(row), _spread(row), target, met, row.detail)
    table.caption = f"measured at {measured()}"
    console.print(table)
    return rows


def measured() -> str:
    """Return the commit and the day, as the tables of docs/performance.md name them."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=8"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "no commit"
    return f"{commit}, {time.strftime('%Y-%m-%d')}"


def _value(row: Row) -> str:
    if math.isnan(row.value):
        return "-"
    if row.unit == "x":
        return f"{row.value:.3f} x"
    return f"{row.value:,.0f} {row.unit}" if row.value >= 100 else f"{row.value:.1f} {row.unit}"


def _spread(row: Row) -> str:
    return f"{row.spread[0]:.3f} … {row.spread[1]:.3f}" if row.spread else ""


if __name__ == "__main__":
    main()
