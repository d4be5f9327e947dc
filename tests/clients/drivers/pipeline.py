"""What UltraRAG's client does, on FastMCP 3.x: several servers under one client, `build`, parameters, the text block.

`pipeline.py FOLDER` runs in a checkout's folder, where FOLDER (servers/generation) holds the launcher; prints JSON.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import yaml
from fastmcp import Client

PROMPTS = """
from fastmcp import FastMCP
app = FastMCP("prompt")
@app.prompt
def ask(q_ls: list[str]) -> list[str]:
    return [f"Answer: {q}" for q in q_ls]
app.run(transport="stdio", show_banner=False)
"""


async def main(folder):
    """Build, then run three steps with the parameters that `build` named."""
    folder = Path(folder)
    parameter_file = str(folder / "parameter.yaml")
    servers = {
        "generation": {"command": "python", "args": [str(folder / "src" / "generation.py")], "env": dict(os.environ)},
        "prompt": {"command": "python", "args": ["-c", PROMPTS], "env": dict(os.environ)},
    }
    async with Client({"mcpServers": servers}) as client:
        await client.call_tool("generation_build", {"parameter_file": parameter_file})
    parameters = yaml.safe_load(Path(parameter_file).read_text())
    described = yaml.safe_load((folder / "server.yaml").read_text())["tools"]

    def arguments(tool, **variables):
        sources = described[tool]["input"].items()
        return {key: parameters[value[1:]] if value[:1] == "$" else variables[value] for key, value in sources}

    async with Client({"mcpServers": servers}) as client:
        await client.call_tool("generation_generation_init", arguments("generation_init"))
        prompts = (await client.get_prompt("prompt_ask", {"q_ls": ["one", "two"]})).messages
        result = await client.call_tool("generation_generate", arguments("generate", prompt_ls=prompts))
        found = {"outputs": described["generate"]["output"], "data": result.data}
        found["text"] = json.loads(result.content[0].text)
        chat = [{"role": "user", "content": "hello"}]
        found["chat"] = (
            await client.call_tool("generation_multiturn_generate", arguments("multiturn_generate", messages=chat))
        ).data
        for tool in await client.list_tools():
            if tool.name.endswith("vllm_shutdown"):
                await client.call_tool(tool.name, {})
    print(json.dumps(found))


asyncio.run(main(sys.argv[1]))
