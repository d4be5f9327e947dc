"""The models of MCP's messages, which a start builds only as far as it needs them."""

from __future__ import annotations

from mcp_types._wire_base import WireModel


def build_late() -> None:
    """Have pydantic build each model when it is first used; called before the SDK is imported.

    All models of two versions of the protocol take an eighth of the start of a server.
    """
    WireModel.model_config["defer_build"] = True
