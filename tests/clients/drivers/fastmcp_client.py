"""FastMCP's client, of the 3.x and the 4.x line: `fastmcp_client.py COMMAND…`; prints what it met as JSON."""

import asyncio
import importlib.metadata
import json
import os
import sys

from fastmcp import Client
from fastmcp.client.transports import StdioTransport


def plain(result):
    """Return a result as it was on the wire."""
    found = {"isError": result.is_error, "content": [block.model_dump(mode="json") for block in result.content]}
    return found | ({"structuredContent": result.structured_content} if result.structured_content else {})


async def main(command):
    """Talk to the server that `command` starts."""
    found = {"version": importlib.metadata.version("fastmcp"), "progress": []}

    async def on_progress(done, total, message):
        found["progress"].append([done, total])

    transport = StdioTransport(command[0], command[1:], env=dict(os.environ), keep_alive=False)
    async with Client(transport) as client:

        async def call(tool, arguments, **options):
            return plain(await client.call_tool(tool, arguments, raise_on_error=False, **options))

        found["tools"] = [tool.model_dump(by_alias=True, mode="json") for tool in await client.list_tools()]
        whole = {"backend_configs": {}, "sampling_params": {"temperature": 0}, "backend": "openai"}
        found["init"] = await call("generation_init", whole)
        found["partly"] = await call("generate", {"prompt_ls": ["hi", "bad"]}, progress_handler=on_progress)
        found["failed"] = await call("generate", {"prompt_ls": ["bad"]})
        found["wrong"] = await call("generate", {"prompts": ["hi"]})
        try:
            await call("generate", {"prompt_ls": ["hang"]}, timeout=1)
        except Exception as error:
            found["gave_up"] = str(error)
        cancelled = asyncio.ensure_future(call("generate", {"prompt_ls": ["hang"]}))
        await asyncio.sleep(0.5)
        cancelled.cancel()
        await asyncio.wait({cancelled})
        found["after"] = await call("generate", {"prompt_ls": ["hi again"]})
    print(json.dumps(found))


asyncio.run(main(sys.argv[1:]))
