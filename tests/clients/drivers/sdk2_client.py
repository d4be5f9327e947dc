"""The high-level client of the MCP SDK 2.x, which speaks the newest protocol: `sdk2_client.py COMMAND…`."""

import asyncio
import importlib.metadata
import json
import os
import sys

from mcp import Client, StdioServerParameters


def plain(result):
    """Return a result as it was on the wire."""
    return result.model_dump(by_alias=True, exclude_none=True, mode="json")


async def main(command):
    """Talk to the server that `command` starts."""
    found = {"version": importlib.metadata.version("mcp"), "progress": []}

    async def on_progress(done, total, message):
        found["progress"].append([done, total])

    async with Client(StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))) as client:
        found["tools"] = [plain(tool) for tool in (await client.list_tools()).tools]
        whole = {"backend_configs": {}, "sampling_params": {"temperature": 0}, "backend": "openai"}
        found["init"] = plain(await client.call_tool("generation_init", whole))
        found["partly"] = plain(
            await client.call_tool("generate", {"prompt_ls": ["hi", "bad"]}, progress_callback=on_progress)
        )
        found["failed"] = plain(await client.call_tool("generate", {"prompt_ls": ["bad"]}))
        found["wrong"] = plain(await client.call_tool("generate", {"prompts": ["hi"]}))
        try:
            await client.call_tool("generate", {"prompt_ls": ["hang"]}, read_timeout_seconds=1)
        except Exception as error:
            found["gave_up"] = str(error)
        cancelled = asyncio.ensure_future(client.call_tool("generate", {"prompt_ls": ["hang"]}))
        await asyncio.sleep(0.5)
        cancelled.cancel()
        await asyncio.wait({cancelled})
        found["after"] = plain(await client.call_tool("generate", {"prompt_ls": ["hi again"]}))
    print(json.dumps(found))


asyncio.run(main(sys.argv[1:]))
