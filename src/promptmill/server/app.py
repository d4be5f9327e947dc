"""The FastMCP app: which tools a client gets, and what it is told of their use."""

from __future__ import annotations

from fastmcp import FastMCP

from promptmill import __version__
from promptmill.server.answer_tools import add_answer_tools
from promptmill.server.bulk_tools import add_bulk_tools
from promptmill.server.engine_tools import add_engine_tools
from promptmill.server.refusals import PlainArguments
from promptmill.service import Service

_ANSWERING = """\
promptmill answers prompts with a language model. Call `generate` with a list of independent prompts, \
`multimodal_generate` when images belong to them, `multiturn_generate` with one conversation. \
Answers come in `ans_ls`, in the order of the prompts; an item that failed is "" there and explained in `errors`. \
For a file of many prompts call `bulk_generate` with an input and an output file; it works in the background.\
"""
_CHOOSING = """ \
`generation_init` is optional: it chooses another backend, model or sampling. \
`vllm_shutdown` frees the engine's memory; a later call loads it again.\
"""


def create_server(service: Service, *, locked: bool = False) -> FastMCP:
    """Return the app over `service`, which the caller made and closes.

    `locked` leaves out the tools that change what the server runs: the operator's configuration alone counts.
    """
    mcp = FastMCP(
        "promptmill",
        version=__version__,
        instructions=_ANSWERING if locked else _ANSWERING + _CHOOSING,
        mask_error_details=True,
        middleware=[PlainArguments()],
    )
    if not locked:
        add_engine_tools(mcp, service)
    add_answer_tools(mcp, service)
    add_bulk_tools(mcp, service)
    return mcp
