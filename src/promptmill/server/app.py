"""The FastMCP app: which tools a client gets, and what it is told of their use."""

from __future__ import annotations

from typing import Any

from fastmcp import FastMCP
from fastmcp.apps.config import UI_EXTENSION_ID
from mcp_types import ServerCapabilities

from promptmill import __version__
from promptmill.server.bulk_tools import add_bulk_tools, board_of
from promptmill.server.call_log import CallLog
from promptmill.server.engine_tools import add_engine_tools
from promptmill.server.status import add_status
from promptmill.server.tool_errors import PlainArguments
from promptmill.server.tools import add_answer_tools
from promptmill.service.service import Service

_ANSWERING = """\
promptmill answers prompts with a language model of its own. Order of use:
1. Nothing has to be prepared: call `generate` with all independent prompts in one list, `multimodal_generate` when \
images belong to them, `multiturn_generate` with one conversation. Answers come in `ans_ls`, in the order of the \
prompts; an item that failed is "" there and explained in `errors`.
2. When the result holds a `job_id`, time was up: do not send those prompts again, read their answers with \
`bulk_results`.
3. For a file of prompts call `bulk_generate` with an input and an output file, then `bulk_status` until its `state` \
is `finished`; `bulk_results` reads answers, `bulk_cancel` ends the job.
The resource promptmill://status shows model, calls in progress and configuration.\
"""
_CHOOSING = """
`generation_init` comes before all that, and only to change backend, model or sampling. \
`vllm_shutdown` comes last, and only to free the memory of a model that runs on this machine.\
"""


def _announce_what_is_there(mcp: FastMCP) -> None:
    """Leave out of the capabilities what this server has nothing for; FastMCP announces all that it could have."""
    sdk_server = mcp._mcp_server
    whole = sdk_server.get_capabilities

    def capabilities(*arguments: Any, **options: Any) -> ServerCapabilities:
        found = whole(*arguments, **options)
        extensions = {name: what for name, what in (found.extensions or {}).items() if name != UI_EXTENSION_ID}
        return found.model_copy(update={"prompts": None, "logging": None, "extensions": extensions or None})

    sdk_server.get_capabilities = capabilities  # type: ignore[method-assign]


def create_server(service: Service, *, locked: bool = False) -> FastMCP:
    """Return the app over `service`, which the caller made and closes.

    `locked` leaves out the tools that change what the server runs: the operator's configuration alone counts.
    """
    mcp = FastMCP(
        "promptmill",
        version=__version__,
        instructions=_ANSWERING if locked else _ANSWERING + _CHOOSING,
        mask_error_details=True,
        middleware=[CallLog(), PlainArguments()],
    )
    running_jobs = board_of(service)
    if not locked:
        add_engine_tools(mcp, service)
    add_answer_tools(mcp, service, running_jobs)
    add_bulk_tools(mcp, service, running_jobs)
    add_status(mcp, service)
    _announce_what_is_there(mcp)
    return mcp
