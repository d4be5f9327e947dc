"""What is told before the server is there is what the server tells."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from promptmill.stdio.manifest import FILE, Manifest
from promptmill.stdio.opening import Opening

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "manifest.py"))
HOW = "run: python scripts/manifest.py"


def test_the_manifest_is_up_to_date():
    assert FILE.read_text(encoding="utf-8") == SCRIPT["text"](), HOW


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize(
    "requests",
    [
        [SCRIPT["initialize"](version), SCRIPT["request"]("ping"), SCRIPT["LIST"]]
        for version in (*SCRIPT["HANDSHAKE_PROTOCOL_VERSIONS"], "2026-07-28", "1999-01-01")
    ]
    + [[SCRIPT["DISCOVER"], SCRIPT["MODERN_LIST"], SCRIPT["DISCOVER"]]],
    ids=lambda requests: requests[0]["params"].get("protocolVersion", "modern"),
)
async def test_the_front_answers_as_the_server_itself_does(requests, locked):
    opening = Opening(Manifest.read(locked=locked))
    fronts = [opening.answer(request) for request in requests]
    assert None not in fronts
    servers = await SCRIPT["ask"](requests, locked=locked)
    assert fronts == servers, HOW
    assert [arguments(front) for front in fronts] == [arguments(server) for server in servers], HOW


def arguments(result):
    """Return the tools' arguments in the order in which a model reads them."""
    return [(tool["name"], *tool["inputSchema"]["properties"]) for tool in result.get("tools", ())]
