"""pydantic-ai's toolset in an agent whose model calls `generate`: `pydantic_ai_agent.py COMMAND…`; prints JSON."""

import asyncio
import importlib.metadata
import json
import os
import sys

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel


async def main(command):
    """Talk to the server that `command` starts."""
    found = {"version": importlib.metadata.version("pydantic-ai-slim")}

    def model(messages, info):
        found["tools"] = [
            {"name": tool.name, "inputSchema": tool.parameters_json_schema} for tool in info.function_tools
        ]
        found["instructions"] = info.instructions
        returned = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
        if returned:
            return ModelResponse(parts=[TextPart(json.dumps(returned[0].content))])
        return ModelResponse(parts=[ToolCallPart("generate", {"prompt_ls": ["hi", "bad"]})])

    transport = StdioTransport(command[0], command[1:], env=dict(os.environ), keep_alive=False)
    toolset = MCPToolset(transport, include_instructions=True, init_timeout=60)
    async with Agent(FunctionModel(model), toolsets=[toolset]) as agent:
        found["partly"] = json.loads((await agent.run("Answer my questions.")).output)
        for name, arguments in {"failed": {"prompt_ls": ["bad"]}, "wrong": {"prompts": ["hi"]}}.items():
            try:
                await toolset.direct_call_tool("generate", arguments)
            except Exception as error:
                found[name] = str(error)
        try:
            await asyncio.wait_for(toolset.direct_call_tool("generate", {"prompt_ls": ["hang"]}), 1)
        except TimeoutError:
            found["gave_up"] = "TimeoutError"
        found["after"] = await toolset.direct_call_tool("generate", {"prompt_ls": ["hi again"]})
    print(json.dumps(found))


asyncio.run(main(sys.argv[1:]))
