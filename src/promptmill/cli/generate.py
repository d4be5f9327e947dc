"""`promptmill generate`."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import orjson

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Outcome
from promptmill.cli.error_words import option_of
from promptmill.cli.options import note_once
from promptmill.cli.terminal import complain, progress_bar, say
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError, config_error, without_controls
from promptmill.core.request import conversation_from_prompt
from promptmill.core.values import JsonDict
from promptmill.core.wording import duration, paced
from promptmill.files.format_table import reading, whole
from promptmill.service import choosing, list_call
from promptmill.service.list_call import ListSink, ModelPart, answer_all, sum_of_calls
from promptmill.service.observers import exported
from promptmill.service.service import Service
from promptmill.system import runtime
from promptmill.system.safe_open import is_file

_PAUSE_S = 0.2
_LOOK_S = 1.0
_REPORT_EVERY_S = 10.0
# A word of a language that separates words by spaces. A question in Chinese has no such word.
_WORD = re.compile(r"[\x21-\u024f]{1,20}")


def run_generate(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Answer prompts and print the answers in order, or write them to a file. Several models answer at once.

    Return 0 if all prompts are answered, else 1. After Ctrl-C, print the answers so far, and return 130. Before any
    request is sent, raises `PromptmillError` if the file cannot be written.
    """
    if not arguments.json:
        _refuse_unquoted(arguments.prompt)
    _refuse_mistaken(arguments.prompt, images=bool(arguments.image))
    given = _read_prompts(arguments.prompt, lines=arguments.lines)
    prompts = [_prompt_with_images(prompt, arguments.image) for prompt in given]
    output: Path | None = arguments.output
    if output is not None:
        _check_writable(output)
    registry.check_key(configuration.config)
    note_once(configuration.config)
    names, live = list(dict.fromkeys(getattr(arguments, "models", None) or ())), None
    if len(prompts) == 1 and not names[1:] and not arguments.json and output is None and sys.stdout.isatty():
        live = LiveAnswer(sys.stdout)
    models = names if names[1:] else [""]
    parts, interrupted = runtime.run(_answer(configuration, prompts, arguments.system or "", models, live))
    if live is not None:
        first = parts[0].outcomes[0]
        live.end(first.text if isinstance(first, Completion) else first.part or None)
        written = True
    else:
        write = _print_json if arguments.json else _print_answers
        written = _write(lambda target: write(parts, target), output)
    for part in () if arguments.json else parts:
        _say_problems(part)
    if interrupted:
        return 130
    return int(not written or any(isinstance(outcome, Failure) for part in parts for outcome in part.outcomes))


def _say_problems(part: ModelPart) -> None:
    """Print the warnings, notes and failures of a model's answers on stderr."""
    of_model = part.name and f"{part.name}: "
    for warning in (*part.call.warnings, *_notes(part.outcomes)):
        say(f"promptmill: {of_model}{warning}", sys.stderr, wrap=True)
    if failed := list_call.summary(part.outcomes, option_of):
        complain(of_model + failed)
        first = next(outcome.error for outcome in part.outcomes if isinstance(outcome, Failure))
        if meant := runtime.run(choosing.meant_model(part.config, first, "--model NAME")):
            say(f"promptmill: {of_model}{meant}", sys.stderr, wrap=True)


def _read_prompts(given: Sequence[str], *, lines: bool) -> list[str]:
    """Return the prompts `given`; stdin replaces `-` or a missing prompt. `lines`: each line of stdin is a prompt."""
    for prompt in given:
        if any("\udc80" <= character <= "\udcff" for character in prompt):  # Python's form for bytes that are not UTF-8
            raise config_error(
                "", "a prompt on the command line is not UTF-8 text; convert it first, such as with iconv."
            )
    if given and "-" not in given:
        return list(given)
    if not given and sys.stdin.isatty():
        raise config_error("", "say what to answer: `promptmill generate PROMPT`, or pipe a text into it.")
    text = _stdin_text()
    if not lines and not text.strip():
        raise config_error(
            "", "stdin is empty; pipe a text into it, or write the prompt: promptmill generate 'PROMPT'."
        )
    read = [line.rstrip("\r\n") for line in text.splitlines() if line.strip()] if lines else [text.strip()]
    return [prompt for word in given or ["-"] for prompt in (read if word == "-" else [word])]


def _stdin_text() -> str:
    """Return all of stdin. Raises `PromptmillError` (`invalid_config`) if it is not UTF-8."""
    try:
        text = sys.stdin.read()
        text.encode()  # in the C locale, Python reads bytes that it cannot decode as lone surrogates
    except UnicodeError as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise config_error(
            "", f"stdin is not UTF-8 text{place}; convert it first, such as with `iconv -t utf-8`."
        ) from None
    return text


def _refuse_unquoted(prompts: Sequence[str]) -> None:
    """Raise `PromptmillError` for prompts that look like one prompt without quotes: each word would be paid for.

    Other programs join words (`aichat`, `mods`) or accept only one prompt (`llm`); for promptmill, each argument is a
    prompt. Real commands seldom have several one-word prompts, and scripts use --json, which allows them.
    """
    words = [prompt for prompt in prompts if _WORD.fullmatch(prompt)]
    if "-" in prompts or len(words) < (2 if words == list(prompts) else 3):
        return
    whole = " ".join(prompts)
    shown = whole if len(whole) <= 60 else f"{whole[:60].rsplit(' ', 1)[0]} …"
    raise config_error(
        "",
        f"these are {len(prompts)} prompts, and each would be answered by itself. Put quotes around one prompt: "
        f"promptmill generate {_quoted(shown)}; or pipe in several, one a line: promptmill generate --lines < FILE",
    )


def _quoted(prompt: str) -> str:
    return f'"{prompt}"' if "'" in prompt and not set(prompt) & set('"$`\\!') else shlex.quote(prompt)


def _refuse_mistaken(prompts: Sequence[str], *, images: bool) -> None:
    """Raise `PromptmillError` for an empty prompt (an unset shell variable), or for a prompt that is a file's name."""
    if not images and any(not prompt.strip() for prompt in prompts):
        raise config_error("", "the prompt is empty; a shell variable in it may not be set.")
    if len(prompts) != 1 or "\n" in (file := prompts[0]):
        return
    if (reading(file) is not None or whole(file) is not None) and is_file(file):
        shown = shlex.quote(file)
        raise config_error(
            "", f"{file} is a file: promptmill bulk {shown} answers.jsonl, or promptmill generate < {shown}"
        )


def _check_writable(output: Path) -> None:
    """Raise `PromptmillError` if `output` cannot be written, before any answer is paid for."""
    folder = output.parent
    existing = output if output.exists() else folder
    if output.is_dir():
        problem = f"{output} is a folder; name a file in it, such as {output / 'answers.txt'}."
    elif not folder.is_dir():
        problem = f"there is no folder {folder}; make it first: mkdir -p {shlex.quote(str(folder))}"
    elif not os.access(existing, os.W_OK):
        problem = f"{existing} may not be written; name another file or change its rights."
    else:
        return
    raise config_error("--output", problem)


def _prompt_with_images(prompt: str, images: Sequence[str]) -> object:
    if not images:
        return prompt
    parts = [{"type": "image_url", "image_url": {"url": source}} for source in images]
    return {"role": "user", "content": [{"type": "text", "text": prompt}, *parts]}


def _print_json(parts: Sequence[ModelPart], target: TextIO) -> None:
    """Print the result as the tool `generate` has it, with its `_meta`."""
    results: dict[str, JsonDict] = {}
    for part in parts:
        found = {"answers": list_call.several(part.outcomes), "errors": list_call.errors(part.outcomes)}
        lists = {"ans_ls": list_call.answers(part.outcomes)} | {name: each for name, each in found.items() if each}
        results[part.name] = lists | {"_meta": list_call.totals(part.call) | list_call.columns(part.outcomes)}
    say(orjson.dumps({"models": results} if parts[1:] else results[""]).decode(), target)


def _write(write: Callable[[TextIO], None], output: Path | None) -> bool:
    """Write the answers to `output`, by default stdout. If `output` fails, use stdout and return False."""
    if output is None:
        write(sys.stdout)
        return True
    try:
        with output.open("w", encoding="utf-8") as target:
            write(target)
        return True
    except OSError as error:
        complain(f"--output: {output} cannot be written: {error.strerror}. Here are the answers:")
        write(sys.stdout)
        return False


def _print_answers(parts: Sequence[ModelPart], target: TextIO) -> None:
    """Print the answers; those of several models have names. On a terminal, the answers to several prompts are
    numbered. A failed answer is an empty line, or the part that is right."""
    only = parts[0].outcomes
    if len(only) == len(parts) == 1 and not isinstance(only[0], Completion) and not only[0].part:
        return
    numbered = len(only) > 1 and (target.isatty() or len(parts) > 1)
    for number, texts in enumerate(zip(*(map(_shown, part.outcomes) for part in parts), strict=True), 1):
        if numbered:
            say(f"{'' if number == 1 else chr(10)}[{number}]", target)
        for part, text in zip(parts, texts, strict=True):
            between = "\n" if "\n" in text else " "
            say(f"{part.name}:{between}{text}" if part.name else text, target)


def _shown(outcome: Outcome) -> str:
    return outcome.text if isinstance(outcome, Completion) else outcome.part


def _notes(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield notes about answers with neither text nor tool calls, and about answers that the length limit cut off."""
    every = [(number, one) for number, one in enumerate(outcomes, 1) if isinstance(one, Completion)]
    empty = [(number, one.finish_reason) for number, one in every if one.is_empty]
    cut = [number for number, one in every if one.finish_reason == "length"]
    if empty:
        first, reason = empty[0]
        which = "the answer is" if len(outcomes) == 1 else f"{len(empty)} answers are (the first is {first})"
        yield f"{which} empty (finish_reason {reason})."
    if cut:
        which = "the answer was" if len(outcomes) == 1 else f"{len(cut)} answers were (the first is {cut[0]})"
        yield f"{which} cut at the length limit; --max-tokens N allows longer ones."


async def _answer(
    configuration: Configuration,
    prompts: Sequence[object],
    system_prompt: str,
    models: Sequence[str],
    live: LiveAnswer | None,
) -> tuple[list[ModelPart], bool]:
    """Return the parts of all models with their outcomes, and whether Ctrl-C interrupted them."""
    service, facts = Service(configuration), Facts(total=len(prompts))
    items = [conversation_from_prompt(prompt, f"prompt {number}") for number, prompt in enumerate(prompts, 1)]
    async with exported(service):
        preview = None if live is None else lambda growing: live.show(growing.text)
        parts = [
            ModelPart(items, Call(facts, preview=preview), system_prompt, await service.call_config(name), name)
            for name in models
        ]
        calls, sinks = [part.call for part in parts], {name: ListSink(len(items)) for name in models}
        work = asyncio.ensure_future(answer_all(parts, lambda part: service.generate_part(part, sinks[part.name])))
        try:
            if sys.stderr.isatty():
                await _show_progress(work, service, calls, live)
            else:
                await _report_waits(work, calls)
            await work
            return parts, False
        except asyncio.CancelledError:  # after Ctrl-C, asyncio's runner cancels the main task
            work.cancel()
            await asyncio.wait({work})
            for part in parts:
                part.outcomes = sinks[part.name].result(PromptmillError(Code.SHUTDOWN, "It was interrupted."))
            return parts, True
        finally:
            await service.aclose()


async def _report_waits(work: asyncio.Future[Any], calls: Sequence[Call]) -> None:
    """Print the reason of a wait immediately, then every few seconds. This is for stderr without a progress display."""
    printed = float("-inf")
    while not work.done():
        await asyncio.wait({work}, timeout=_LOOK_S)
        waiting = sum_of_calls(calls).waiting
        if not work.done() and time.monotonic() - printed >= _REPORT_EVERY_S and waiting:
            say(f"promptmill: {waiting}", sys.stderr)
            printed = time.monotonic()


async def _show_progress(
    work: asyncio.Future[Any], service: Service, calls: Sequence[Call], live: LiveAnswer | None
) -> None:
    began, total = time.monotonic(), sum_of_calls(calls).facts.total
    with progress_bar(sys.stderr) as progress:
        if live is not None:
            live.begins = progress.stop
        bar = progress.add_task("", total=total, said="steps")
        while not work.done():
            await asyncio.wait({work}, timeout=_PAUSE_S)
            call = sum_of_calls(calls)
            done = call.counts.done
            doing = ("" if done else service.activity) or call.waiting or paced(call.pace) or "steps"
            of = "" if total == 1 else f", {done:,} of {total:,}"
            progress.update(bar, completed=done, said=f"{doing}{of}, {duration(time.monotonic() - began)}")


class LiveAnswer:
    """Prints an answer on a terminal as it grows. The answer of a new attempt starts on a new line."""

    def __init__(self, target: TextIO) -> None:
        """`target` is a terminal."""
        self._target = target
        self._shown = ""
        self.begins: Callable[[], None] | None = None
        """A function that is called before the first text, to clear the line."""

    def show(self, text: str) -> None:
        """Print the new part of `text`, the answer so far."""
        text = without_controls(text)
        if self._shown and not text.startswith(self._shown):
            self._target.write("\n")
            self._shown = ""
        if len(text) == len(self._shown):
            return
        if self.begins is not None:
            self.begins()
            self.begins = None
        self._target.write(text[len(self._shown) :])
        self._target.flush()
        self._shown = text

    def end(self, text: str | None) -> None:
        """Print the rest of the finished answer. `text`: the whole answer; None after a failure."""
        if text is not None:
            self.show(text)
        if text is not None or self._shown:
            self._target.write("\n")
