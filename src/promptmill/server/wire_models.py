"""The models of MCP's messages, which are built only when they are needed."""

from __future__ import annotations

from mcp_types._wire_base import WireModel


def build_late() -> None:
    """Make pydantic build each model on first use. Call it before the SDK is imported.

    Building all models of two protocol versions takes an eighth of a server's start.
    """
    WireModel.model_config["defer_build"] = True
