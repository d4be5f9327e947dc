"""UltraRAG's own client over its own servers, run with its own Python; only the generation server is a process.

    python driver.py JOB        # in a checkout; JOB is a JSON file, see `main`

Prints a line of JSON with what became of each pipeline or call.

UltraRAG's client starts a Python for each server, seven for most examples. Here the servers that are the same on both
sides run inside this process, each loaded anew for each pipeline, and the generation server is started as their client
does it, once for all pipelines.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path

import ultrarag.client as ultrarag_client
import yaml
from fastmcp import Client, FastMCP
from fastmcp.client.transports import FastMCPTransport, StdioTransport
from fastmcp.server.providers.proxy import StatefulProxyClient
from fastmcp.server.server import create_proxy
from ultrarag.mcp_logging import get_logger

GENERATION = "generation.py"


def load(path: str):
    """Return the app of a server of UltraRAG, from a module of its own."""
    folder = str(Path(path).parent.absolute())
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location(f"server_{Path(path).stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name in ("Retriever", "Reranker"):  # as their `__main__` does
            if hasattr(module, name):
                getattr(module, name)(module.app)
        return module.app
    finally:
        sys.path.remove(folder)


STARTED = {}
_NEVER_S, _LATEST_S = 8, 90  # where their server never answers, and where it does


class Servers:
    """What their client makes of an `mcpServers` configuration: one client over all servers."""

    def __init__(self, configuration):
        self.configuration = configuration["mcpServers"]
        self.stack = contextlib.AsyncExitStack()

    async def __aenter__(self):
        several = len(self.configuration) > 1
        whole = FastMCP("composite")
        for name, entry in self.configuration.items():
            path = entry["args"][0]
            if Path(path).name == GENERATION:
                app = await self.started(name, entry)
            else:
                app = load(path)
            whole.mount(app, namespace=name if several else None)
        self.client = await self.stack.enter_async_context(Client(FastMCPTransport(whole)))
        return self

    async def started(self, name, entry):
        if name not in STARTED:
            client = StatefulProxyClient(transport=StdioTransport(entry["command"], entry["args"], env=entry["env"]))
            await client.__aenter__()
            STARTED[name] = client
        return create_proxy(STARTED[name], name="Proxy-generation")

    async def __aexit__(self, *_):
        await self.stack.aclose()

    def __getattr__(self, name):
        return getattr(self.client, name)


def lay_over(content, values):
    for key, value in values.items():
        if (
            isinstance(value, dict)
            and isinstance(content.get(key), dict)
            and key not in {"key_map", "sampling_params", "extra_params"}
        ):
            lay_over(content[key], value)
        else:
            content[key] = value


async def one(pipeline):
    """Build and run one example; return its steps, or why it ended."""
    file = Path(pipeline["file"])
    began = time.monotonic()
    found = {"name": pipeline["name"]}
    try:
        await ultrarag_client.build(str(file))
        parameters = file.parent / "parameter" / f"{file.stem}_parameter.yaml"
        content = yaml.safe_load(parameters.read_text())
        lay_over(content, pipeline["parameters"])
        parameters.write_text(yaml.safe_dump(content, sort_keys=False))
        context = ultrarag_client.load_pipeline_context(str(file))
        async with ultrarag_client.create_mcp_client(context["mcp_cfg"]) as client:
            result = await ultrarag_client.execute_pipeline(client, context, False, True)
        found["steps"] = result["all_results"] if isinstance(result, dict) and "all_results" in result else result
    except BaseException as error:
        found["error"] = f"{type(error).__name__}: {error}"
        found["trace"] = traceback.format_exc()
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


def main():
    """JOB holds `pipelines`, as the module of that name makes them, or `calls` and the `path` of the server."""
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ["log_level"] = "error"  # noqa: SIM112 (their name)
    ultrarag_client.log_level = "error"
    ultrarag_client.logger = get_logger("Client", "error")
    ultrarag_client.Client = Servers
    if "calls" in job:
        asyncio.run(calls(job["path"], job["calls"]))
    else:
        asyncio.run(all_of(job["pipelines"]))


async def calls(path, cases):
    async with Client(StdioTransport("python", [path], env=dict(os.environ))) as client:
        for case in cases:
            found = {"name": case["name"]}
            try:
                async with asyncio.timeout(_NEVER_S if "concurrency 0" in case["name"] else _LATEST_S):
                    await client.call_tool("generation_init", case["init"])
                    for tool, arguments in case["before"]:
                        with contextlib.suppress(Exception):  # some are meant to fail
                            await client.call_tool(tool, arguments)
                    result = await client.call_tool(case["tool"], case["arguments"])
                    found["answers"] = json.loads(result.content[0].text)["ans_ls"]  # as their client reads it
                    assert result.data["ans_ls"] == found["answers"]
            except (Exception, asyncio.CancelledError) as error:
                found["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(found), flush=True)


async def all_of(pipelines):
    source = Path("servers/benchmark/src/benchmark.py")
    code = source.read_text()
    for pipeline in pipelines:
        source.write_text(re.sub(r'"benchmark->[^"]+"', f'"benchmark->{pipeline["fields"]}"', code))
        found = await one(pipeline)
        print(
            json.dumps(found, default=lambda value: getattr(getattr(value, "content", value), "text", str(value))),
            flush=True,
        )
    for client in STARTED.values():
        await client.transport.close()


if __name__ == "__main__":
    main()
