"""The barest FastMCP server with five tools: what ours is measured against."""

from __future__ import annotations

from fastmcp import FastMCP

mcp = FastMCP("bare")


@mcp.tool
async def one(prompt_ls: list[str]) -> dict[str, list[str]]:
    """Return nothing."""
    del prompt_ls
    return {"ans_ls": [""]}


@mcp.tool
async def two() -> None:
    """Do nothing."""


@mcp.tool
async def three() -> None:
    """Do nothing."""


@mcp.tool
async def four() -> None:
    """Do nothing."""


@mcp.tool
async def five() -> None:
    """Do nothing."""


if __name__ == "__main__":
    mcp.run(show_banner=False)
