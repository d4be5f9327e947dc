"""`python -m benchmarks.sure_runs [--jobs 10] [--runs 200] [--rows 10000]`: do sure labels keep their promise?

A cheap model is right on 90 % of the rows. Its probabilities say much (`sharp`), less (`dull`) or nothing (`useless`)
about where it is wrong. Each job is `promptmill.bulk` with `sure`, and asks both models over HTTP. Each run is the
draw, the scores and the cut of a job on simulated answers, without database and requests. Every job and run has a table
of its own; the promise is that 95 % of its labels agree with the strong model, with 95 % certainty.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import math
import multiprocessing
import statistics
import tempfile
import time
from heapq import nsmallest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from aiohttp import web

import promptmill
from promptmill.backends.protocol import Completion
from promptmill.features.labels import cut as cuts
from promptmill.features.labels.panel import kind_of, place_of
from promptmill.features.labels.rule import SurePart
from promptmill.jobs.store.record_labels import label_of
from promptmill.jobs.store.records import SLOT, record_of

LABELS = ("positive", "negative", "neutral")
SHARPNESS = {"sharp": 9, "dull": 4, "useless": 0}
"""With all answers of both models known, 7, 13 and 50 % of the rows would have to go to the strong model."""
BOUNDS = {"sharp": 0.17, "dull": 0.27, "useless": 0.70}
_WRONG = 0.1
_AGREE, _CERTAINTY = 0.95, 0.95
_LEAST = 1e-9


class Labels(NamedTuple):
    """The answers of both models to a row."""

    strong: str
    cheap: str
    probability: float
    """What the cheap model says that its answer has."""


class Labelled(NamedTuple):
    """One table, labelled."""

    strong: float
    """The share of the rows that the strong model labels."""
    reached: float
    """The share of the labels that are the strong model's."""


def answered(scores: str, text: str) -> Labels:
    """Return the answers of both models to a text, which alone decides about them."""
    strong = int(cuts.number("strong", text) * len(LABELS))
    probability, sharpness = cuts.number("score", text), SHARPNESS[scores]
    wrong = cuts.number("wrong", text) < _WRONG * (sharpness + 1) * (1 - probability) ** sharpness
    return Labels(LABELS[strong], LABELS[(strong + wrong) % len(LABELS)], max(probability, _LEAST))


def _logprobs(row: Labels) -> dict[str, Any]:
    return {"content": [{"token": row.cheap, "logprob": math.log(row.probability)}]}


def run(scores: str, rows: int, seed: int) -> Labelled:
    """Label a table of simulated answers."""
    texts = [f"review {n} of table {seed}" for n in range(rows)]
    models = [answered(scores, text) for text in texts]
    panels = [
        [record_of(n + SLOT, Completion(row.cheap, "stop", logprobs=_logprobs(row)), text.encode())]
        for n, (text, row) in enumerate(zip(texts, models, strict=True))
    ]
    wrong = cuts.errors_allowed(rows, _AGREE)
    size = cuts.sample_size(rows, wrong, _CERTAINTY)
    part = SurePart(of="", round=0, rows=rows, drawn=size, seed=f"{scores} {seed}", wrong=wrong)
    sample = {*nsmallest(size, range(rows), key=lambda n: cuts.number("sample", part.seed, n))}
    part = part.model_copy(update={"score": kind_of([panels[n] for n in sample], has_second=False)})
    places = [place_of(panel, part) for panel in panels]
    agrees = [label_of(panel[0]) == row.strong for panel, row in zip(panels, models, strict=True)]
    c = cuts.allowed(rows, size, wrong, _CERTAINTY)
    where = cuts.cut([(places[n], agrees[n]) for n in sample], c)
    cheap = [n for n in range(rows) if places[n] > where and n not in sample]
    return Labelled(1 - len(cheap) / rows, 1 - sum(not agrees[n] for n in cheap) / rows)


def job(scores: str, rows: int, seed: int, url: str) -> Labelled:
    """Label a table by a job."""
    block = {"base_url": f"{url}/{scores}", "api_key": "x"}
    models = {name: {"openai": block | {"model_name": name}} for name in ("small", "strong")}
    texts = [f"review {n} of table {seed}" for n in range(rows)]
    with tempfile.TemporaryDirectory() as folder:
        config, output = Path(folder, "config.json"), Path(folder, "labels.jsonl")
        config.write_bytes(orjson.dumps({"models": models}))
        promptmill.bulk(
            [{"text": text} for text in texts],
            output,
            prompt="{{text}}",
            choices=LABELS,
            model="small",
            sure="strong",
            config=config,
            state=Path(folder, "state"),
            progress=False,
        )
        found = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    right = sum(row["answer"] == answered(scores, text).strong for row, text in zip(found, texts, strict=True))
    return Labelled(sum(row["sure"] != "cheap" for row in found) / rows, right / rows)


async def _reply(request: web.Request) -> web.Response:
    body = orjson.loads(await request.read())
    row = answered(request.match_info["scores"], body["messages"][-1]["content"])
    label = row.strong if body["model"] == "strong" else row.cheap
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": label},
        "finish_reason": "stop",
        "logprobs": _logprobs(row) if body.get("logprobs") else None,
    }
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
    answer = {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
    return web.Response(body=orjson.dumps(answer), content_type="application/json")


def serve(ready: Connection) -> None:
    """Answer for both models, until the process ends."""

    async def forever() -> None:
        app = web.Application()
        app.router.add_post("/{scores}/chat/completions", _reply)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(forever())


def show(scores: str, what: str, found: list[Labelled], seconds: float) -> None:
    """Print a line of the table."""
    strong, below = statistics.mean(one.strong for one in found), sum(one.reached < _AGREE for one in found)
    reached = statistics.mean(one.reached for one in found)
    print(
        f"| {scores} | {what} | {len(found)} | {strong:.1%} (at most {BOUNDS[scores]:.0%}) | "
        f"{max(one.strong for one in found):.1%} | {reached:.1%} | {below} of {len(found)} | "
        f"{seconds / len(found):.1f} s |",
        flush=True,
    )


def main() -> None:
    """Print a line for each kind of scores, of jobs and of runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=10_000)
    arguments = parser.parse_args()
    print("| scores | | number | by the strong model | most | agree | below 95 % | each |")
    print("|---|---|---|---|---|---|---|---|")
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    for scores in SHARPNESS:
        for what, number, one in (
            ("jobs", arguments.jobs, functools.partial(job, url=url)),
            ("runs", arguments.runs, run),
        ):
            begun = time.perf_counter()
            if found := [one(scores, arguments.rows, seed) for seed in range(number)]:
                show(scores, what, found, time.perf_counter() - begun)
    server.terminate()


if __name__ == "__main__":
    main()
