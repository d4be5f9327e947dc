"""FastMCP's client with its extension for tasks: `fastmcp_tasks_client.py COMMAND…`; prints JSON.

Found are the results of a large call, of one whose prompts all fail, and of a small one.
"""

import asyncio
import json
import os
import sys

from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp_tasks.client import TasksClientExtension


async def main(command):
    """Talk to the server that `command` starts."""
    found = {}
    transport = StdioTransport(command[0], command[1:], env=dict(os.environ), keep_alive=False)
    async with Client(transport, extensions=[TasksClientExtension()], init_timeout=60) as client:
        for name, prompts in {"large": ["hi"] * 119 + ["bad"], "failed": ["bad"] * 120, "small": ["hi"]}.items():
            result = await client.call_tool("generate", {"prompt_ls": prompts}, raise_on_error=False)
            found[name] = {"error": result.is_error, "said": result.content[0].text} | result.structured_content
    print(json.dumps(found))


asyncio.run(main(sys.argv[1:]))
