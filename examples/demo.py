"""The whole thing, once: real models answer ten questions and label three reviews through a real MCP client.

Run it with scripts/demo.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from mcp import Client, StdioServerParameters
from rich.console import Console
from rich.status import Status
from rich.table import Table

HERE = Path(__file__).parent
CONSOLE = Console(width=min(80, Console().width))
CHAT = [
    {"role": "user", "content": "Hi, my name is Ada and I live in London."},
    {"role": "assistant", "content": "Hello Ada! How can I help you today?"},
    {"role": "user", "content": "What is the name of the city where I live?"},
]
REVIEWS = {
    "Great food, and friendly people.": "positive",
    "Never again. Cold soup, rude waiter.": "negative",
    "Das beste Konzert seit Jahren!": "positive",
}
NEXT = """
[bold]Next:[/] a table in, a table with answers out; then a model of yours

  {promptmill} bulk examples/reviews.csv labels.csv \\
    --choices positive,negative --prompt 'Is this positive or negative? {{{{text}}}}'
  {promptmill} generate "What is the capital of Germany?"
  {promptmill} generate --base-url localhost:11434 --model NAME "Hi"
  {promptmill} init      # three questions, and a configuration file
"""
TURN = {"question": CHAT[-1]["content"], "expect": "London"}


async def main() -> int:
    """Run the demo; returns the exit code."""
    questions = yaml.safe_load((HERE / "questions.yaml").read_text(encoding="utf-8"))
    command = ["-m", "promptmill", "serve", "--config", str(HERE.parent / "parameter.yaml")]
    server = StdioServerParameters(command=sys.executable, args=command)
    started = time.monotonic()
    with CONSOLE.status("starting the server") as status:
        return await show(server, questions, status, started)


async def show(server: StdioServerParameters, questions: list[dict[str, str]], status: Status, started: float) -> int:
    """Ask through `server` and print what comes back; returns 1 when a known fact is missing."""

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        del progress, total
        status.update(message or "")

    async with Client(server) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        CONSOLE.print(f"[bold]The server offers[/] [dim]({since(started)})[/] {', '.join(tools)}")
        sampling = {"temperature": 0, "max_tokens": 48, "stop": [". ", "\n"]}
        wanted = {"backend_configs": {}, "sampling_params": sampling, "backend": "openvino"}
        await client.call_tool("generation_init", wanted, progress_callback=tell)
        CONSOLE.print(f"[bold]The model is loaded[/]  [dim]({since(started)})[/]")

        result = await client.call_tool("generate", {"prompt_ls": [entry["question"] for entry in questions]})
        answers = answers_of(result)
        CONSOLE.print(table_of(questions, answers))
        CONSOLE.print(rate_of(result))

        labels = {"prompt_ls": [*REVIEWS], "sampling_params": {"choices": ["positive", "negative"]}}
        labelled = await client.call_tool("generate", labels, progress_callback=tell)
        CONSOLE.print(table_of_labels(labelled))

        reply = await client.call_tool("multiturn_generate", {"messages": CHAT})
        for turn in [*CHAT, {"role": "assistant", "content": answers_of(reply)[0]}]:
            CONSOLE.print(f"  [bold]{turn['role']:>9}[/]  {turn['content']}")
        CONSOLE.print(rate_of(reply))
        await client.call_tool("vllm_shutdown", {})
    CONSOLE.print(f"[bold]Shut down[/]  [dim]({since(started)})[/]")
    CONSOLE.print(NEXT.format(promptmill=command_here()), highlight=False, soft_wrap=True)

    asked = [*zip(questions, answers, strict=True), (TURN, answers_of(reply)[0])]
    wrong = [entry["question"] for entry, answer in asked if not is_known(entry, answer)]
    wrong += [text for text, label in zip(REVIEWS, answers_of(labelled), strict=True) if label != REVIEWS[text]]
    if wrong:
        CONSOLE.print(f"[red]The model should have known:[/] {' '.join(wrong)}")
    return int(bool(wrong))


def answers_of(result: Any) -> list[str]:
    """Return the answers of a tool result."""
    return list(result.structured_content["ans_ls"])


def table_of(questions: list[dict[str, str]], answers: list[str]) -> Table:
    """Return questions and answers side by side."""
    table = Table()
    table.add_column("question", ratio=1)
    table.add_column("answer", ratio=2)
    for entry, answer in zip(questions, answers, strict=True):
        table.add_row(entry["question"], " ".join(answer.split()))
    return table


def table_of_labels(result: Any) -> Table:
    """Return the reviews with their labels and the probabilities of these."""
    table = Table()
    table.add_column("review", ratio=2)
    table.add_column("label", ratio=1)
    shares = result.meta.get("probabilities") or [{}] * len(REVIEWS)
    for text, label, by_label in zip(REVIEWS, answers_of(result), shares, strict=True):
        sure = f" [dim]({by_label[label]:.0%})[/]" if label in by_label else ""
        table.add_row(text, label + sure)
    return table


def rate_of(result: Any) -> str:
    """Return tokens and speed in words."""
    meta = result.meta
    speed = f"{meta['completion_tokens']} tokens in {meta['seconds']:.1f} s"
    return f"[bold]{speed}, {meta['tokens_per_second']:.1f} tokens per second[/]"


def is_known(entry: dict[str, str], answer: str) -> bool:
    """Return whether `answer` holds what the model surely knows, if the question has such a fact."""
    return re.search(entry.get("expect", ""), answer, re.IGNORECASE) is not None


def command_here() -> str:
    """Return the command, from the working directory where that is shorter."""
    command = str(Path(sys.executable).with_name("promptmill"))
    return min(command, os.path.relpath(command), key=len)


def since(started: float) -> str:
    """Return the time since `started` in words."""
    return f"{time.monotonic() - started:.1f} s"


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
