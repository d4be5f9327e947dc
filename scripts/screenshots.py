"""Make the pictures docs/*.webp: real runs against an endpoint on loopback.

    .venv/bin/python scripts/screenshots.py

300 reviews are labelled by two models, a good one and one that errs more often, and compared with the right answers;
photos, PDFs and mails are read into tables. Chromium shows the reports, a row of a report with the page of its PDF, the
comparison and a job inside a chat, whose reviews have pictures, in light and dark colours. Those of a desktop become the
pictures of README and docs; those of a phone are in build/screenshots, to look at. An error on the console of a page ends the script, and so does a picture above 150 kB. Needs Chromium:
`CHROMIUM=PATH`, else `chromium` on PATH. Linux and macOS.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiohttp import web
from fastmcp import Client
from PIL import Image, ImageChops, ImageDraw, ImageStat
from reportlab.pdfgen.canvas import Canvas

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "screenshots"
ROWS, HELD, MOST_BYTES = 300, 160, 150_000
WIDTHS = {"desktop": (1280, 1150), "phone": (390, 844)}
LIGHTS = {"day": None, "evening": "#3b2a55", "fog": "#e4e8ea"}
SEEN = {
    "food": "a plate with a slice of orange and herbs",
    "service": "a bell on a counter",
    "price": "three coins",
    "place": "a lake below a mountain",
}
MAILS = {  # subject, which a number of the order follows: its text, topic, whether it is urgent, and the wish
    "Parcel": ("My parcel {} has not arrived. I need it by Friday.", "delivery", True, "parcel {} by Friday"),
    "Two charges": ("You charged my card twice for order {}.", "payment", True, "one charge of order {} back"),
    "Thank you": ("The lamp of order {} is lovely, and it came a day early.", "praise", False, None),
    "Wrong size": ("The shoes of order {} are too small.", "return", False, "another size for order {}"),
    "Copy": ("Please send me a copy of the invoice for order {}.", "payment", False, "a copy of invoice {}"),
    "Broken": ("The vase of order {} arrived in pieces.", "return", True, "a new vase for order {}"),
}
NAMES = ("Anna Berg", "Carl Lind", "Mia Holm", "Jon Dahl", "Eva Strand", "Leo Vik")
SCHEMES = {"light": 1, "dark": 0}  # Blink's numbers
ERRS = {"small-1": 0.12, "good-1": 0.04}
PROMPT = "What does this review say? {{text}}"
FIELDS = "sentiment:positive|negative,topic:food|service|price|place,stars:integer"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--hide-scrollbars"),
    *("--allow-file-access-from-files", "--virtual-time-budget=4000", "--enable-logging=stderr"),
]
SAID = {  # topic: what a happy and an unhappy guest says of it
    "food": (
        ["The soup was the best I have had in years.", "Fresh bread, warm from the oven.", "Every dish was a joy."],
        ["Cold soup and stale bread.", "The fish smelled of yesterday.", "Everything drowned in salt."],
    ),
    "service": (
        ["The waiter remembered us from last year.", "Quick, kind and never in the way.", "They moved tables for us."],
        ["We waited an hour for the menu.", "The waiter was rude to my father.", "Nobody answered the phone."],
    ),
    "price": (
        ["Two courses for the price of one elsewhere.", "Fair prices, large plates.", "Worth every cent."],
        ["Nine euros for a glass of water.", "Small plates, large bill.", "They charged us for the bread."],
    ),
    "place": (
        ["A quiet garden behind the house.", "The view of the lake alone is worth it.", "Lovely old rooms."],
        ["So loud that we had to shout.", "The table was sticky.", "It smelled of paint."],
    ),
}
ENDS = ("We went on a Sunday.", "It was our second visit.", "We were four.", "A friend had told us of it.", "")
KNOWN = {
    text: {"sentiment": mood, "topic": topic, "stars": stars}
    for topic, sides in SAID.items()
    for (mood, stars), texts in zip((("positive", 5), ("negative", 2)), sides, strict=True)
    for text in texts
}


class Gate:
    """Holds the requests of a job after the first `HELD`, so that a slow machine, too, has the time for a picture."""

    def __init__(self) -> None:
        self._entered, self._opened = 0, threading.Event()
        self.open()

    async def enter(self) -> None:
        """Wait until the gate has room or is open."""
        self._entered += 1
        if self._entered > HELD:
            await asyncio.to_thread(self._opened.wait)

    def close(self) -> None:
        """Let `HELD` further requests pass."""
        self._entered = 0
        self._opened.clear()

    def open(self) -> None:
        """Let all requests pass."""
        self._opened.set()


GATE = web.AppKey("gate", Gate)


async def _answer(request: web.Request) -> web.Response:
    """Answer as the model would that is asked: right, but for its share of errors."""
    await request.app[GATE].enter()
    body = await request.json()
    asked = body["messages"][-1]["content"]
    image = ""
    if isinstance(asked, list):
        image = next((part["image_url"]["url"] for part in asked if part["type"] == "image_url"), "")
        asked = next(part["text"] for part in asked if part["type"] == "text")
    chance = random.Random(body["model"] + asked)  # the same errors in each run
    await asyncio.sleep(chance.uniform(0.1, 0.4))
    if "photo" in asked:
        answer = _of_photo(image)
    elif found := re.search(r"Invoice (\S+)\s+for (.+?)\s+(\S+)\s+Total: ([\d.]+)", asked):
        answer = dict(zip(("number", "customer", "due"), found.groups(), strict=False), total=float(found[4]))
        if "`quote`" in asked:
            words = (f"Invoice {found[1]}", f"for {found[2]}", found[3], f"Total: {found[4]}")
            quotes = zip(answer, words, strict=True)
            answer = {name: {"quote": quote, "value": answer[name]} for name, quote in quotes}
    elif found := re.search(r"Subject: (.*) (\d+)", asked):
        _, topic, urgent, wish = MAILS[found[1]]
        answer = {"topic": topic, "urgent": urgent, "wish": wish and wish.format(found[2])}
    else:
        answer = dict(next(value for text, value in KNOWN.items() if text in asked))
        if chance.random() < ERRS[body["model"]]:
            answer["sentiment"] = "negative" if answer["sentiment"] == "positive" else "positive"
            answer["topic"] = chance.choice(list(SAID))
    usage = {"prompt_tokens": 20 + len(asked) // 4, "completion_tokens": 18}
    choice = {"message": {"role": "assistant", "content": json.dumps(answer)}, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": usage})


def _of_photo(url: str) -> dict[str, Any]:
    """Return what a photo shows: the drawing of `draw_pictures` that is most like it."""
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        small = image.convert("RGB").resize((16, 12))

    def distance(at: tuple[str, str]) -> float:
        other = lit(drawn(at[0]), at[1]).resize((16, 12))
        return sum(ImageStat.Stat(ImageChops.difference(small, other)).mean)

    topic, light = min(((topic, light) for topic in SEEN for light in LIGHTS), key=distance)
    return {"shows": SEEN[topic], "light": light, "people": 0}


def endpoint(gate: Gate) -> str:
    """Start the endpoint in a thread; return its URL."""
    ready: list[str] = []
    started = threading.Event()

    async def run() -> None:
        app = web.Application()
        app[GATE] = gate
        app.router.add_post("/v1/chat/completions", _answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        started.set()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    started.wait()
    return ready[0]


def write_rows(folder: Path) -> None:
    """Write the reviews, and their right answers."""
    chance = random.Random(7)  # the same rows in each run
    texts = [chance.choice(list(KNOWN)) for _ in range(ROWS)]
    reviews = [{"id": at, "text": f"{text} {chance.choice(ENDS)}".strip()} for at, text in enumerate(texts, 1)]
    gold = [{"id": at, "sentiment": KNOWN[text]["sentiment"]} for at, text in enumerate(texts, 1)]
    for name, rows in (("reviews.csv", reviews), ("gold.csv", gold)):
        with (folder / name).open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def drawn(topic: str) -> Image.Image:
    """Draw what a topic is about: a plate, a bell, coins, or a lake."""
    image = Image.new("RGB", (320, 240), "#e9dcc6")
    draw = ImageDraw.Draw(image)
    if topic == "food":
        for size, colour in ((110, "white"), (80, "#f3f3f3"), (62, "#d9822b"), (26, "#5b8c3a")):
            draw.ellipse((160 - size, 120 - size, 160 + size, 120 + size), fill=colour)
    elif topic == "service":
        draw.pieslice((70, 50, 250, 290), 180, 360, fill="#c9a227")
        draw.rectangle((55, 170, 265, 190), fill="#5b4a3a")
        draw.ellipse((146, 28, 174, 56), fill="#5b4a3a")
    elif topic == "price":
        for at, colour in enumerate(("#c9a227", "#b0b3b8", "#b87333")):
            draw.ellipse((30 + 85 * at, 70, 130 + 85 * at, 170), fill=colour, outline="#5b4a3a", width=5)
    else:
        draw.rectangle((0, 0, 320, 130), fill="#9cc9ee")
        draw.ellipse((220, 20, 280, 80), fill="#f6d84c")
        draw.polygon([(0, 130), (90, 40), (180, 130)], fill="#5b8c3a")
        draw.rectangle((0, 130, 320, 240), fill="#3f78a8")
    return image


def lit(image: Image.Image, light: str) -> Image.Image:
    """Return a drawing as it looks by day, in the evening or in fog."""
    colour = LIGHTS[light]
    return image if colour is None else Image.blend(image, Image.new("RGB", image.size, colour), 0.5)


def draw_pictures(folder: Path) -> None:
    """Draw a picture for each topic. Name them in the reviews."""
    for topic in SAID:
        drawn(topic).save(folder / f"{topic}.png")
    with (folder / "reviews.csv").open(newline="", encoding="utf-8") as opened:
        texts = [row["text"] for row in csv.DictReader(opened)]
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["photo", "text"])
        for text in texts:
            about = next(value["topic"] for known, value in KNOWN.items() if known in text)
            writer.writerow([f"{about}.png", text])


def write_documents(folder: Path) -> None:
    """Write the photos, the PDFs and the mails."""
    for name in ("photos", "invoices", "mails"):
        (folder / name).mkdir()
    for number, (topic, light) in enumerate(itertools.product(SEEN, LIGHTS), 1):
        lit(drawn(topic), light).save(folder / "photos" / f"IMG_{number:04}.png")
    chance = random.Random(7)  # the same documents in each run
    for number in range(17, 41):
        page = Canvas(str(folder / "invoices" / f"2026-{number}.pdf"))
        lines = (f"Invoice 2026-{number}", f"for {chance.choice(NAMES)}", f"2026-{chance.randint(1, 12):02}-15")
        for at, line in enumerate((*lines, f"Total: {chance.uniform(20, 900):.2f} EUR")):
            page.drawString(72, 720 - 24 * at, line)
        page.save()
    for number in range(1, 25):
        subject = chance.choice(list(MAILS))
        mail = EmailMessage()
        mail["From"], mail["To"] = chance.choice(NAMES).replace(" ", ".") + "@example.org", "shop@example.org"
        order = chance.randint(1000, 9999)
        mail["Subject"] = f"{subject} {order}"
        mail.set_content(MAILS[subject][0].format(order))
        (folder / "mails" / f"{number:03}.eml").write_bytes(bytes(mail))


def pages(folder: Path) -> dict[str, Path]:
    """Run the jobs, and return the pages that they wrote."""
    write_rows(folder)
    block = {"base_url": endpoint(Gate()), "model_name": "good-1", "api_key": "none", "concurrency": 16}
    settings = {
        "backend": "openai",
        "backend_configs": {"openai": block},
        "price": {"input": 0.3, "output": 1.2},
    }
    (folder / "parameter.yaml").write_text(json.dumps(settings))

    def run(*words: str) -> None:
        environment = os.environ | {"PROMPTMILL_STATE": str(folder / "state")}
        command = [sys.executable, "-m", "promptmill", *words]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

    job = ["--prompt", PROMPT, "--fields", FIELDS, "--quiet"]
    run("bulk", "reviews.csv", "labels-a.csv", *job, "--model", "small-1")
    run("bulk", "reviews.csv", "labels-b.csv", *job, "--model", "good-1", "--report", "report.html")
    files = ("labels-a.csv", "labels-b.csv", "--gold", "gold.csv", "--field", "sentiment")
    run("compare", *files, "--report", "compare.html")
    write_documents(folder)
    for made_of, pattern, ask, fields in (
        ("photos", "photos/", "What does the photo show?", "shows,light:day|evening|fog,people:integer"),
        ("pdfs", "invoices/*.pdf", "Read the invoice.", "number!,customer,due:date,total:number"),
        ("mails", "mails/*.eml", "What does the mail want?\n{{content}}", "topic!,urgent:boolean,wish"),
    ):
        job = ["--prompt", ask, "--fields", fields, "--quiet", "--report", f"{made_of}.html"]
        run("bulk", pattern, f"{made_of}.csv", *job)
    made = {name: folder / f"{name}.html" for name in ("report", "photos", "pdfs", "mails", "compare")}
    for page in made.values():  # nobody wants to read where a temporary folder was
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(f"{folder}/", ""), encoding="utf-8")
    return made


def shown(page: Path, size: tuple[int, int], scheme: int, to: Path) -> None:
    """Let Chromium draw a page. A phone's width is that of a frame, since a window has 500 pixels at least."""
    width, height = size
    frame = page.with_name(f"frame-{width}.html")
    style = "margin:0;border:0;display:block"
    frame.write_text(
        f'<!doctype html><meta name="color-scheme" content="light dark"><body style="{style}">'
        f'<iframe src="{page.name}" style="{style};width:{width}px;height:{height}px"></iframe>'
    )
    with tempfile.TemporaryDirectory() as profile:
        command = [
            os.environ.get("CHROMIUM", "chromium"),
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={max(width, 500)},{height}",
            f"--screenshot={to}",
            frame.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    if errors := [line for line in done.stderr.splitlines() if "CONSOLE" in line]:
        raise SystemExit("\n".join([f"{page.name}: errors on the console", *errors]))
    with Image.open(to) as image:
        image.crop((0, 0, width, height)).save(to)


async def row_with_page(folder: Path) -> None:
    """Make the pictures of an opened row of a report, whose values have boxes on the page of the row's PDF."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import browser

    write_documents(folder)
    environment = os.environ | {"PROMPTMILL_STATE": str(folder / "state"), "OPENAI_API_KEY": "none"}
    asked = ["--prompt", "Read the invoice.", "--fields", "number!,customer,due:date,total:number", "--quote"]
    to = ["--model", "good-1", "--base-url", endpoint(Gate()), "--quiet", "--report", "quotes.html"]
    command = [sys.executable, "-m", "promptmill", "bulk", "invoices/*.pdf", "quotes.csv", *asked, *to]
    await asyncio.to_thread(subprocess.run, command, cwd=folder, env=environment, check=True)
    async with browser.opened() as page:
        for scheme in SCHEMES:
            await page.open(folder / "quotes.html")
            await page.look(900, 920, scheme)
            await page.until("order.length === 24")
            await page.run("(opened(0), 1)")
            await page.until("document.querySelector('dialog .sheet img')?.naturalWidth > 0")
            keep(await page.picture(), f"boxes-{scheme}")
        if page.complaints:
            raise SystemExit("\n".join(["quotes.html: errors on the console", *map(str, page.complaints)]))


async def chat(folder: Path) -> None:
    """Make the pictures of a job inside a chat, while it runs: the host is that of the tests."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import browser
    from app_host import hosting
    from promptmill.config.configuration import Configuration
    from promptmill.features.app.tools import ADDRESS
    from promptmill.server import create_server
    from promptmill.service.service import Service

    write_rows(folder)
    draw_pictures(folder)
    gate = Gate()
    block = {"base_url": endpoint(gate), "model_name": "good-1", "api_key": "none", "concurrency": 4}
    price = {"input": 0.3, "output": 1.2}
    settings = {"backend": "openai", "backend_configs": {"openai": block}, "price": price}
    service = Service(Configuration({**settings, "allowed_roots": [str(folder)]}))
    async with Client(create_server(service)) as client, browser.opened() as page:
        for scheme in SCHEMES:
            asked = {"input_file": str(folder / "reviews.csv"), "output_file": str(folder / f"labels-{scheme}.csv")}
            asked |= {"prompt": PROMPT, "fields": FIELDS, "image_column": "photo"}
            gate.close()
            started = await client.call_tool("bulk_generate", asked)
            async with hosting(client, ADDRESS, theme=scheme) as url:
                await page.look(1000, 720, scheme)
                await page.visit(url)
                await page.until("window.ready")
                result = json.dumps({"content": [], "structuredContent": started.structured_content})
                await page.run(f"window.notify('ui/notifications/tool-result', {result})")
                await page.inside("document.getElementById('bar').value > 120")
                images = "[...document.querySelectorAll('#table td img')]"
                has_pictures = f"{images}.length > 5 && {images}.every(each => each.naturalWidth > 0)"
                await page.inside(has_pictures)
                assert await page.inside("document.getElementById('state').textContent === 'running'")
                keep(await page.picture(), f"chat-{scheme}")
                gate.open()
                await page.inside("document.getElementById('state').textContent === 'finished'")
    await service.aclose()


def keep(png: bytes, name: str) -> None:
    """Store a picture of the docs."""
    to = ROOT / "docs" / f"{name}.webp"
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(to, quality=80, method=6)
    if to.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{to.name} has {to.stat().st_size} bytes")
    print(f"{to.name}: {to.stat().st_size:,} bytes")


def main() -> None:
    """Make all pictures."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        made = pages(Path(name))
        for kind, page in made.items():
            for device, size in WIDTHS.items():
                for scheme, number in SCHEMES.items():
                    picture = OUT / f"{kind}-{device}-{scheme}.png"
                    shown(page, size, number, picture)
                    if device == "desktop":
                        keep(picture.read_bytes(), f"{kind}-{scheme}")
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(asyncio.wait_for(row_with_page(Path(name)), 600))
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(asyncio.wait_for(chat(Path(name)), 600))


if __name__ == "__main__":
    main()
