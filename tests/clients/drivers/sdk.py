"""The MCP SDK's session over stdio, of the 1.x and the 2.x line: `sdk.py COMMAND…`; prints what it met as JSON."""

import asyncio
import datetime as dt
import importlib.metadata
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

VERSION = importlib.metadata.version("mcp")
SECOND = 1 if VERSION.startswith("2.") else dt.timedelta(seconds=1)


def plain(result):
    """Return a result as it was on the wire."""
    return result.model_dump(by_alias=True, exclude_none=True, mode="json")


async def main(command):
    """Talk to the server that `command` starts."""
    found = {"version": VERSION, "progress": []}

    async def on_progress(done, total, message):
        found["progress"].append([done, total])

    start = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
    async with stdio_client(start) as (reader, writer), ClientSession(reader, writer) as session:
        await session.initialize()
        found["tools"] = [plain(tool) for tool in (await session.list_tools()).tools]
        whole = {"backend_configs": {}, "sampling_params": {"temperature": 0}, "backend": "openai"}
        found["init"] = plain(await session.call_tool("generation_init", whole))
        found["partly"] = plain(
            await session.call_tool("generate", {"prompt_ls": ["hi", "bad"]}, progress_callback=on_progress)
        )
        found["failed"] = plain(await session.call_tool("generate", {"prompt_ls": ["bad"]}))
        found["wrong"] = plain(await session.call_tool("generate", {"prompts": ["hi"]}))
        try:
            await session.call_tool("generate", {"prompt_ls": ["hang"]}, read_timeout_seconds=SECOND)
        except Exception as error:
            found["gave_up"] = str(error)
        cancelled = asyncio.ensure_future(session.call_tool("generate", {"prompt_ls": ["hang"]}))
        await asyncio.sleep(0.5)
        cancelled.cancel()
        await asyncio.wait({cancelled})
        found["after"] = plain(await session.call_tool("generate", {"prompt_ls": ["hi again"]}))
    print(json.dumps(found))


asyncio.run(main(sys.argv[1:]))
