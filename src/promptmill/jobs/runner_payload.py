"""What a detached runner is told, over its standard input alone: plan with its secrets, order, state folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, SecretStr

from promptmill.config.loading import Configuration
from promptmill.config.models import ResolvedConfig
from promptmill.config.settings import Settings
from promptmill.jobs.foreground import creating
from promptmill.jobs.job_folders import JobFolders
from promptmill.jobs.job_request import JobRequest
from promptmill.jobs.lock import Lock
from promptmill.service.service import Service


def pack(plan: ResolvedConfig, order: JobRequest, folders: JobFolders, lock: int | None) -> bytes:
    """Return everything as JSON, secrets in the clear. `lock` is the descriptor that the runner inherits."""
    value = {
        "settings": _plain(plan.settings),
        "operator": _plain(plan.operator),
        "from_call": sorted(plan.from_call),
        "trust_client": plan.trust_client,
        "chosen": plan.chosen,
        "keyless": plan.keyless,
        "name": plan.name,
        "file": None if plan.file is None else _plain(plan.file),
        "order": order.model_dump(mode="json"),
        "root": str(folders.root),
        "beside_outputs": folders.beside_outputs,
        "lock": lock,
    }
    return orjson.dumps(value, default=_revealed)


def unpack(data: bytes) -> tuple[Service, JobRequest, JobFolders, Lock | None]:
    """Return a service with the plan that was packed, the order, where jobs live, and the job's lock."""
    value = orjson.loads(data)
    operator = Settings.model_validate(value["operator"])
    file = value["file"]
    raw = value["operator"] if file is None else {**file, "default_model": value["name"]}
    order = JobRequest.model_validate(value["order"])
    settings = Settings.model_validate(value["settings"])
    plan = ResolvedConfig(
        settings,
        operator,
        frozenset(value["from_call"]),
        value["trust_client"],
        chosen=value["chosen"],
        keyless=value["keyless"],
        name=value["name"],
        file=None if file is None else Settings.model_validate(file),
    )
    service = Service(Configuration(raw, trust_client=value["trust_client"]), plan=plan, create=creating(order))
    lock = None if value["lock"] is None else Lock.adopt(value["lock"])
    folders = JobFolders(Path(value["root"]), beside_outputs=value["beside_outputs"])
    return service, order, folders, lock


def _plain(settings: Settings) -> dict[str, Any]:
    # what was not given stays so: some keys mean something by being there
    return settings.model_dump(exclude_unset=True)


def _revealed(value: object) -> object:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError
