"""The models of MCP's messages: a start builds those of the messages that it needs, not all of them."""

from __future__ import annotations

from mcp_types._wire_base import WireModel


def build_late() -> None:
    """Have pydantic build each model when it is first used; called before the SDK is imported.

    Building all those of two versions of the protocol takes an eighth of the start of a server.
    """
    WireModel.model_config["defer_build"] = True
