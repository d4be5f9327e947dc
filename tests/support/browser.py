"""A headless Chromium, driven over its own protocol: a page, what it asks for, and its complaints."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pypdfium2 as pdfium

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""
AXE = Path(__file__).resolve().parents[2] / "node_modules" / "axe-core" / "axe.min.js"
"""The rules for accessible pages: `npm install --no-save axe-core` in the root of the repository."""
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"),
    "--disable-features=IsolateSandboxedIframes",  # a sandboxed frame is then a part of its page's target
)


class Page:
    """The one page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        """Errors and warnings of the console, and exceptions."""
        self.requests: list[str] = []
        self.frame: int | None = None
        """The context of the scripts in the page's frame."""
        self._socket = socket
        self._number = 0
        self._loaded = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def listen(self) -> None:
        """Take the browser's messages until it ends."""
        async for message in self._socket:
            found = json.loads(message.data)
            name, about = found.get("method"), found.get("params", {})
            if "id" in found:
                self._waiting.pop(found["id"]).set_result(found)
            elif name == "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            elif name == "Runtime.executionContextCreated":
                where = about["context"]
                self.frame = where["id"] if where["origin"] in {"", "null", "://"} else self.frame
            elif name == "Page.loadEventFired":
                self._loaded.set()
            elif name == "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"]))
            elif name in {"Log.entryAdded", "Runtime.consoleAPICalled"}:
                self.complaints.append(str(about))

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        self._waiting[self._number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        found = await answer
        assert "error" not in found, found
        result: dict[str, Any] = found["result"]
        return result

    async def open(self, file: Path) -> None:
        """Load a file."""
        await self.visit(file.as_uri())

    async def visit(self, url: str) -> None:
        """Load a page."""
        self._loaded.clear()
        self.frame = None
        await self.send("Page.navigate", url=url)
        await self._loaded.wait()

    async def inside(self, script: str) -> Any:
        """Wait until an expression in the page's frame has a value that is true, and return it."""
        while self.frame is None or not (value := await self.run(script, contextId=self.frame)):
            await asyncio.sleep(0.02)
        return value

    async def run(self, script: str, **where: Any) -> Any:
        """Return the value of an expression."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True, **where}
        found = await self.send("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until an expression has a value that is true, and return it."""
        while not (value := await self.run(script)):
            await asyncio.sleep(0.02)
        return value

    async def look(self, width: int, height: int, scheme: str) -> None:
        """Have the page in a window of this size, in the colours `light` or `dark`."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        await self.send("Emulation.setDeviceMetricsOverride", **size)
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def picture(self) -> bytes:
        """Return a PNG of the window."""
        return base64.b64decode((await self.send("Page.captureScreenshot"))["data"])

    async def barriers(self) -> list[str]:
        """Return the critical and serious findings of axe-core on the page, or on that of its frame, as it is."""
        where = {} if self.frame is None else {"contextId": self.frame}
        await self.run(f"{AXE.read_text(encoding='utf-8')};1", **where)
        found = await self.run("axe.run().then(result => JSON.stringify(result.violations))", **where)
        grave = [one for one in json.loads(found) if one["impact"] in {"critical", "serious"}]
        return [f"{one['id']}: {one['nodes'][0]['html']}" for one in grave]

    async def printed(self) -> list[str]:
        """Return the text of each page that the browser prints."""
        document = pdfium.PdfDocument(base64.b64decode((await self.send("Page.printToPDF"))["data"]))
        return [sheet.get_textpage().get_text_bounded() for sheet in document]


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Page]:
    """Give the page of a new browser."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [BROWSER, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = Path(folder) / "DevToolsActivePort"
            while not (port.exists() and port.read_text().count("\n")):
                assert process.poll() is None, "the browser has ended"
                await asyncio.sleep(0.05)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list") as reply:
                    targets = await reply.json(content_type=None)
                address = next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    page = Page(socket)
                    listening = asyncio.ensure_future(page.listen())
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await page.send(f"{domain}.enable")
                    yield page
                    listening.cancel()
        finally:
            process.kill()
            process.wait()
