"""Frameworks for agents, each calling `generate` as its agents do: `agent_frameworks.py NAME COMMAND…`; prints JSON.

Found are the tools' names, and what the framework makes of a call with a good and a bad prompt, and of a failed one.
"""

import asyncio
import json
import os
import sys

PARTLY, FAILED = {"prompt_ls": ["hi", "bad"]}, {"prompt_ls": ["bad"]}


async def openai_agents(command):
    """An agent of the OpenAI Agents SDK, whose model calls the tool."""
    from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
    from agents.mcp import MCPServerStdio
    from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

    set_tracing_disabled(True)
    found = {}

    class Fake(Model):
        def __init__(self, arguments):
            self.arguments = arguments

        async def get_response(self, system_instructions, input, model_settings, tools, *others, **more):  # noqa: A002
            found["tools"] = [tool.name for tool in tools]
            outputs = [item["output"] for item in input if isinstance(item, dict) and "output" in item]
            if outputs:
                text = ResponseOutputText(text=json.dumps(outputs[0]), type="output_text", annotations=[])
                said = ResponseOutputMessage(
                    id="2", content=[text], role="assistant", status="completed", type="message"
                )
            else:
                said = ResponseFunctionToolCall(
                    call_id="1", name="generate", arguments=json.dumps(self.arguments), type="function_call"
                )
            return ModelResponse(output=[said], usage=Usage(), response_id=None)

        def stream_response(self, *arguments, **more):
            raise NotImplementedError

    start = {"command": command[0], "args": command[1:], "env": dict(os.environ)}
    # its default gives a server 5 s; a machine that runs other tests may need more
    async with MCPServerStdio(start, client_session_timeout_seconds=60) as server:
        for name, arguments in (("partly", PARTLY), ("failed", FAILED)):
            agent = Agent("test", model=Fake(arguments), mcp_servers=[server])
            found[name] = (await Runner.run(agent, "Answer my questions.")).final_output
    return found


async def google_adk(command):
    """An agent of Google's ADK, whose model calls the tool."""
    from google.adk.agents import LlmAgent
    from google.adk.models import BaseLlm, LlmResponse
    from google.adk.runners import InMemoryRunner
    from google.adk.tools.mcp_tool import McpToolset, StdioConnectionParams
    from google.genai import types
    from mcp import StdioServerParameters

    found = {}

    class Fake(BaseLlm):
        arguments: dict

        async def generate_content_async(self, llm_request, stream=False):
            found["tools"] = list(llm_request.tools_dict)
            answers = [part.function_response for part in llm_request.contents[-1].parts if part.function_response]
            call = types.FunctionCall(name="generate", args=self.arguments)
            part = types.Part(text=json.dumps(answers[0].response)) if answers else types.Part(function_call=call)
            yield LlmResponse(content=types.Content(role="model", parts=[part]))

    start = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
    toolset = McpToolset(connection_params=StdioConnectionParams(server_params=start, timeout=60))
    try:
        for name, arguments in (("partly", PARTLY), ("failed", FAILED)):
            agent = LlmAgent(name="test", model=Fake(model="fake", arguments=arguments), tools=[toolset])
            runner = InMemoryRunner(agent, app_name="test")
            session = await runner.session_service.create_session(app_name="test", user_id="u")
            asked = types.Content(role="user", parts=[types.Part(text="Answer my questions.")])
            async for event in runner.run_async(user_id="u", session_id=session.id, new_message=asked):
                for part in event.content.parts if event.content else ():
                    found[name] = part.text or found.get(name)
    finally:
        await toolset.close()
    return found


async def llama_index(command):
    """LlamaIndex's tools, as its agents call them."""
    from llama_index.tools.mcp import BasicMCPClient, McpToolSpec

    client = BasicMCPClient(command[0], args=command[1:], env=dict(os.environ), timeout=60)
    tools = {tool.metadata.name: tool for tool in await McpToolSpec(client).to_tool_list_async()}
    found = {"tools": list(tools)}
    for name, arguments in (("partly", PARTLY), ("failed", FAILED)):
        try:
            found[name] = str(await tools["generate"].acall(**arguments))
        except Exception as error:
            found[name] = str(error)
    return found


async def mcp_use(command):
    """mcp-use's session."""
    from mcp_use import MCPClient

    start = {"command": command[0], "args": command[1:], "env": dict(os.environ)}
    client = MCPClient.from_dict({"mcpServers": {"promptmill": start}})
    session = await client.create_session("promptmill")
    try:
        found = {"tools": [tool.name for tool in await session.list_tools()]}
        for name, arguments in (("partly", PARTLY), ("failed", FAILED)):
            found[name] = (await session.call_tool("generate", arguments)).model_dump_json()
    finally:
        await client.close_all_sessions()
    return found


print(json.dumps(asyncio.run(globals()[sys.argv[1]](sys.argv[2:]))))
