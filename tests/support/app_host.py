"""A host of MCP Apps: a page with the app in a sandboxed frame, whose calls of tools go to a client of the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from fastmcp import Client

_PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<style>body {{ margin: 0 }} iframe {{ display: block; border: 0; width: 100%; height: 720px }}</style>
<iframe sandbox="allow-scripts"></iframe>
<script>
const frame = document.querySelector("iframe"), context = {context};
window.calls = []; window.sizes = [];
function reply(message) {{ frame.contentWindow.postMessage({{jsonrpc: "2.0", ...message}}, "*"); }}
window.notify = (method, params) => reply({{method, params}});
addEventListener("message", async event => {{
  const message = event.data;
  if (event.source !== frame.contentWindow) return;
  if (message.method === "ui/initialize")
    reply({{id: message.id, result: {{protocolVersion: "2026-01-26", hostInfo: {{name: "host", version: "1"}},
      hostCapabilities: {{serverTools: {{}}}}, hostContext: context}}}});
  else if (message.method === "ui/notifications/initialized") window.ready = true;
  else if (message.method === "ui/notifications/size-changed") window.sizes.push(message.params.height);
  else if (message.method === "tools/call") {{
    window.calls.push(message.params);
    const result = await (await fetch("/call", {{method: "POST", body: JSON.stringify(message.params)}})).json();
    reply({{id: message.id, result}});
  }}
}});
fetch("/app").then(found => found.text()).then(text => {{ frame.srcdoc = text; }});
</script>"""


@asynccontextmanager
async def hosting(client: Client[Any], address: str, **context: Any) -> AsyncIterator[str]:
    """Serve the page of the host, which shows the resource `address`; yields its URL."""
    (page,) = await client.read_resource(address)

    async def called(request: web.Request) -> web.Response:
        asked = json.loads(await request.text())
        found = await client.call_tool_mcp(asked["name"], asked["arguments"])
        return web.Response(text=found.model_dump_json(by_alias=True), content_type="application/json")

    async def shown(_: web.Request) -> web.Response:
        return web.Response(text=getattr(page, "text", ""), content_type="text/html")

    async def host(_: web.Request) -> web.Response:
        return web.Response(text=_PAGE.format(context=json.dumps(context)), content_type="text/html")

    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.get("/", host), web.get("/app", shown), web.post("/call", called)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        await asyncio.sleep(0)
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()
