"""The search for a better prompt, for the command, Python and servers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import orjson

from promptmill.answers.shown import shown_of
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.request import Sampling, with_words
from promptmill.core.values import JsonDict
from promptmill.features.improve.gold import GoldRow, GoldRows
from promptmill.features.improve.search import WORSE, YOURS, search
from promptmill.features.improve.search_jobs import JobSteps, longest_of
from promptmill.features.verbs.record import VerbCall
from promptmill.files import disk
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.inputs.row_secrets import check_rows
from promptmill.jobs.inputs.short_forms import labels_of
from promptmill.jobs.manage.series_file import SeriesFile
from promptmill.system.call_files import FileRule


def searched(call: VerbCall) -> JsonDict:
    """Search for a better prompt, and return all figures of the search. Raises `PromptmillError`."""
    options = call.options
    prompt, system, again = options["prompt"], options["system"] or "", options["again"]
    if not prompt.strip():
        raise input_error(Named("prompt"), " is empty.")
    if not options["strong"].strip():
        raise input_error(Named("strong"), " needs the name of the model that writes better prompts.")
    labels = labels_of(options["choices"])
    if not isinstance(options["model"] or "", str):
        raise input_error(Named("model"), " is one model, whose prompt is improved.")
    with call.rows("input") as (path,):
        if (output := call.output(Path(f"{path.name.partition('.')[0]}-prompt.txt"))) is not None:
            call.target = SeriesFile(output, options["overwrite"], sends_again=again is not None)
        model = call.model(choices=labels)
        limit = longest_of(model.models.config, options["max_cost"])
        strong = call.model("strong", choices=None, temperature=None, max_tokens=limit)
        reading = partial(
            gold_in,
            path=path,
            column=options["gold"],
            prompt=prompt,
            labels=[*labels.texts],
            encoding=options["encoding"],
            rule=call.rule,
        )
        gold = call.apart(reading, path.name)
    series = call.series(options["max_cost"])
    steps = JobSteps(series, model, strong, system, again)
    shown = with_words(system, shown_of(Sampling.model_validate(labels.sampling), shows=True).words)
    return search(gold, prompt, steps, system=shown, tell=call.tell) | series.spent


def gold_in(
    *, path: Path, column: str, prompt: str, labels: list[str], encoding: str | None, rule: FileRule | None
) -> GoldRows:
    """Return the gold rows in a file, with cells that are JSON values. Raises `PromptmillError`.

    `rule`: the file rule for a call of a server. With a rule, a file that holds secrets is refused.
    """
    try:
        rows = list(objects_in(path, encoding))
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{error.filename} cannot be read: {disk.why(error)}.", "") from None
    if rule is not None:
        check_rows(path.name, rows, rule)
    found = GoldRows.of(rows, column, prompt, labels)
    seen, held_out = (
        [GoldRow(row.key, orjson.loads(orjson.dumps(row.cells, default=str)), row.label) for row in part]
        for part in (found.seen, found.held_out)
    )
    return GoldRows(labels, found.header, seen, held_out, found.repeated, found.without)


def write_prompt(call: VerbCall, figures: JsonDict) -> None:
    """Write the winner to the file of the search, and add the file to the figures. A worse prompt is not written.

    Raises `PromptmillError`.
    """
    is_better = figures["winner"] != YOURS and figures["outcome"] != WORSE
    if call.target is None or not is_better:
        return
    with call.target.new() as path:
        path.write_bytes(f"{figures['prompt']}\n".encode())
    figures["prompt_file"] = str(call.target.path)
