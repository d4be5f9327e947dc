"""LangChain's adapter, as an agent uses it: `langchain_adapter.py COMMAND…`; prints what it met as JSON."""

import asyncio
import importlib.metadata
import json
import os
import sys

from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools


async def main(command):
    """Talk to the server that `command` starts."""
    start = {"transport": "stdio", "command": command[0], "args": command[1:], "env": dict(os.environ)}
    found = {"version": importlib.metadata.version("langchain-mcp-adapters")}
    async with MultiServerMCPClient({"promptmill": start}).session("promptmill") as session:
        tools = {tool.name: tool for tool in await load_mcp_tools(session, handle_tool_errors=True)}
        found["tools"] = [{"name": name, "inputSchema": tool.args_schema} for name, tool in tools.items()]

        async def call(name, arguments):
            message = await tools[name].ainvoke({"type": "tool_call", "id": "1", "name": name, "args": arguments})
            return {"status": message.status, "content": message.content, "artifact": message.artifact}

        found["partly"] = await call("generate", {"prompt_ls": ["hi", "bad"]})
        found["failed"] = await call("generate", {"prompt_ls": ["bad"]})
        found["wrong"] = await call("generate", {"prompts": ["hi"]})
        try:
            await asyncio.wait_for(call("generate", {"prompt_ls": ["hang"]}), 1)
        except TimeoutError:
            found["gave_up"] = "TimeoutError"
        found["after"] = await call("generate", {"prompt_ls": ["hi again"]})
    print(json.dumps(found))


asyncio.run(main(sys.argv[1:]))
