"""The seal of a stored order, which shows that this user gave the order on this computer.

The hidden folder of a job moves with its output: in an archive, in a repository, on a shared disk. So the database may
come from anybody, and what only the operator may set (see `Option.is_of_operator`) is obeyed only in a sealed order.
The seal is a digest keyed by the user's own secret. It covers the order with its command, and the paths of the files.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from promptmill.core.errors import Named, input_error
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.plan import JobSpec
from promptmill.options.option import is_outside
from promptmill.options.table import SAMPLING_KEYS, options
from promptmill.system.state import own_secret

_TRUST = Named("trust", text="{} resumes it with them.")
_MOST_NAMED = 5  # options and files that an error names


def seal_of(order: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the seal of an order and a description, as they are stored; None if this user cannot keep a secret."""
    if (secret := own_secret()) is None:
        return None
    paths = [(spec.get(name) or {}).get("path") for name in ("input", "output")]
    text = orjson.dumps([order, paths], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return {"hmac": hmac.new(secret, text, "sha256").hexdigest()}


def check_received(
    order: JobOrder, spec: JobSpec, place: Path, ways: Iterable[str], *, are_paths_checked: bool
) -> None:
    """Raise `PromptmillError` (`invalid_input`) if an order without a valid seal names what only the operator may set,
    or files outside `place`, unless `are_paths_checked` already. `ways`: the ways that the job used. A way remembers
    ids of its work at a provider, which would be read and deleted with the operator's key."""
    known = options()
    parts = (name for name in order.parts if name in known and known[name].is_of_operator("", place))
    own: list[str | Named] = [Named(name) for name in dict.fromkeys((*ways, *parts))]
    for option in known.values():
        keys = [key.removeprefix(SAMPLING_KEYS) for key in option.keys if key.startswith(SAMPLING_KEYS)]
        if any(option.is_of_operator(order.sampling.get(key), place) for key in keys):
            own.append(Named(option.name))
    paths = [] if are_paths_checked else [*(order.inputs if spec.input.is_file else ()), spec.output.path]
    own += [str(path) for path in paths if is_outside(str(path), place)]
    if own:
        words = [word for each in own[:_MOST_NAMED] for word in (", ", each)][1:]
        stored = f"Job {spec.job_id} was stored by another user or on another computer, and names "
        raise input_error(stored, *words, ". Look at them, and repeat the command of the job; ", _TRUST)
