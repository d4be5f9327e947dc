"""The card of a dataset on the Hugging Face Hub: for each output, a section about the origin of its answers.

The section names neither prompts nor local files. Digests show whether two outputs used the same prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from promptmill.core.money import dollars
from promptmill.core.version import __version__
from promptmill.features.hub.hub import SCHEME
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.spec import digest

_HOME = "https://github.com/promptmill/promptmill"
_NEW = "---\ntags:\n- promptmill\n---\n"


def with_section(card: str, folder: Folder, file: str) -> str:
    """Return the card with a section about the data file `file`, which the job in `folder` wrote.

    The section replaces the file's earlier section; all other text stays. The same job always gives the same text.
    Raises the errors of `Folder.known_spec`.
    """
    begin, end = f"<!-- promptmill: {file} -->", f"<!-- end of promptmill: {file} -->"
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(folder))
    section = (
        f"{begin}\n## {file}\n\nAnswers of a model, made with [promptmill]({_HOME}) {__version__}.\n\n"
        f"| | |\n|---|---|\n{rows}\n{end}"
    )
    earlier = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if earlier.search(card):
        return earlier.sub(lambda _: section, card)
    return f"{(card or _NEW).rstrip()}\n\n{section}\n"


def title(folder: Folder) -> str:
    """Return the title for the commit."""
    found = status.read(folder)
    return f"promptmill: {found.get('total') or 0:,} rows by {found['model'] or 'a model'}"[:200]


def _facts(folder: Folder) -> list[tuple[str, str]]:
    found, spec, order = status.read(folder), folder.known_spec(), folder.order
    cost = found.get("cost")
    facts = [
        ("model", found["model"] or "unknown"),
        (
            "rows",
            f"{found.get('total') or 0:,}: {found.get('answered', 0):,} answered, {found.get('failed', 0):,} failed",
        ),
        ("tokens", f"{found.get('prompt_tokens', 0):,} in, {found.get('completion_tokens', 0):,} out"),
        ("cost", "unknown: no price is known" if cost is None else dollars(cost)),
    ]
    source = order.shown.urls.get("input_file", "") if order is not None else ""
    if source.startswith(SCHEME):
        facts.insert(1, ("input", source))
    templates: Sequence[str] = spec.question.templates
    facts += [("prompt", f"sha256 {hashlib.sha256(text.encode()).hexdigest()}") for text in templates]
    if not templates:
        facts.append(("prompt", f"the column {spec.question.column or 'prompt'}"))
    system = spec.targets[0].fingerprint.get("system_prompt", "")
    if system and system != digest(""):
        facts.append(("system prompt", f"digest {system}"))
    return facts


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
