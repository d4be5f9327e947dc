"""The parts of `scripts/site` around the generator: `stage` copies the pages, `check` checks what was built.

On GitHub the pages are read as they are. For the site, README.md becomes index.md, the pages of docs/ stand beside it,
and a link to a file that is no page leads to GitHub. Standard library only.
"""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "site"
SOURCE, HTML = BUILD / "source", BUILD / "html"
TOP = ("README.md", "README.zh-CN.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md")
GITHUB = "https://github.com/promptmill/promptmill"
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
PICTURE = re.compile(r"<picture>.*?</picture>", re.DOTALL)
NAMED = re.compile(r"\[[\w./-]+\.md\]\(([^)#\s]+)(#[^)\s]*)?\)")
FILE = re.compile(r"[\w./-]+(?:\.(?:md|html|py|yaml)|/)")
# A block that begins with the name of a program holds commands.
COMMANDS = re.compile(
    r"^```\n(?=(?:[A-Z_]+=\S+ )?(?:\S*/)?(?:promptmill|git|scripts/\w+|pip|python|export|echo|cat|mkdir|curl|docker|"
    r"kubectl|ollama|llama-server|ray) )",
    re.MULTILINE,
)
# Wider than the generator's, for tables; a name in a table is not broken within, and no command is cut.
STYLE = """.md-grid { max-width: 80rem }
@media (min-width: 45em) { .md-typeset table:not([class]) code { white-space: nowrap } }
.language-sh pre code { white-space: pre-wrap; overflow-wrap: anywhere }
"""
PICTURES = {".svg", ".png", ".webp"}


def place(path: Path) -> Path | None:
    """Return where a file of the repository stands in the site, None for one that is not part of it."""
    name = path.relative_to(ROOT)
    if str(name) in TOP:
        return Path("index.md") if name.name == "README.md" else name
    if name.parts[0] == "docs" and path.suffix in {".md", *PICTURES}:
        return name.relative_to("docs")
    return None


def titles() -> dict[str, str]:
    """Return the title of each page in the site's navigation."""
    found: dict[str, str] = {}

    def collect(nav: object) -> None:
        for entry in nav if isinstance(nav, list) else ():
            for title, below in entry.items():
                if isinstance(below, str):
                    found[below] = title
                collect(below)

    collect(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"])
    return found


def adapted(page: Path, text: str) -> str:
    """Return a page's text for the site: its links, the titles of pages in place of their files, languages of code."""
    here = place(page)
    assert here is not None
    named = titles()

    def title(found: re.Match[str]) -> str:
        file = Path(os.path.normpath(page.parent / found[1]))
        there = place(file) if file.is_file() else None
        return found[0] if there is None else f"[{named[there.as_posix()]}]({found[1]}{found[2] or ''})"

    def link(target: str) -> str:
        path, mark, anchor = target.partition("#")
        if not path or urlsplit(target).scheme:
            return target
        file = Path(os.path.normpath(page.parent / path))
        if not file.exists():
            raise SystemExit(f"site: {page.relative_to(ROOT)} links to {target}, which does not exist")
        there = place(file) if file.is_file() else None
        if there is None:
            return f"{GITHUB}/{'tree' if file.is_dir() else 'blob'}/main/{file.relative_to(ROOT)}{mark}{anchor}"
        return os.path.relpath(there, here.parent) + mark + anchor

    def picture(parts: re.Match[str]) -> str:
        """Two images, of which the site's style shows that of the chosen colours."""
        dark, light, alt = (
            " ".join(found[1].split())
            for name in ("srcset", "src", "alt")
            if (found := re.search(rf'\b{name}="([^"]+)"', parts[0]))
        )
        return f"![{alt}]({light}#only-light) ![{alt}]({dark}#only-dark)"

    kept: list[str] = []

    def keep(code: re.Match[str]) -> str:
        kept.append(code[0])
        return f"\0{len(kept) - 1}\0"

    text = NAMED.sub(title, CODE.sub(keep, COMMANDS.sub("```sh\n", PICTURE.sub(picture, text))))
    text = LINK.sub(lambda found: link(found[0]), text)
    while "\0" in text:
        text = re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text)
    return text


def stage() -> None:
    """Copy the pages and pictures."""
    shutil.rmtree(BUILD, ignore_errors=True)
    files = [*map(ROOT.joinpath, TOP), *sorted((ROOT / "docs").rglob("*"))]
    for file in files:
        there = place(file) if file.is_file() else None
        if there is None:
            continue
        (SOURCE / there).parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            (SOURCE / there).write_text(adapted(file, file.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(file, SOURCE / there)
    (SOURCE / "site.css").write_text(STYLE, encoding="utf-8")
    in_nav = titles().keys()
    staged = {page.relative_to(SOURCE).as_posix() for page in SOURCE.rglob("*.md")}
    if in_nav != staged:
        raise SystemExit(f"site: zensical.toml's nav and the pages differ: {', '.join(sorted(in_nav ^ staged))}")


class Page(html.parser.HTMLParser):
    """The links, anchors and texts of a built page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {"", "__skip"}
        self.texts: list[str] = []
        self.named: list[str] = []
        """The texts of links."""
        self.heads: list[str] = []
        """The heads of columns."""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the element refers to, and its name."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag in {"p", "code", "pre", "script", "style", "a", "th"}:
            self._inside.append(tag)
        if tag in {"a", "th"}:
            (self.named if tag == "a" else self.heads).append("")
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in {"canonical", "prev", "next", "alternate"}:
            self.loads.append(found.get("href", ""))
        elif "src" in found:
            self.loads.append(found["src"])

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        if tag in self._inside:
            del self._inside[len(self._inside) - 1 - self._inside[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        """Note the text of a paragraph."""
        if self._inside and self._inside[-1] == "p":
            self.texts.append(data)
        if "a" in self._inside:
            self.named[-1] += data
        if "th" in self._inside:
            self.heads[-1] += data


def check() -> None:
    """Write llms-full.txt, and end with an error if a link leads nowhere or something was not understood."""
    _write_texts()
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(HTML.rglob("*.html"))}
    wrong = []
    for file, page in pages.items():
        name = file.relative_to(HTML).as_posix()
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loads and parts.scheme != "data":
                    wrong.append(f"{name}: loads {link} from another host")
                continue
            target = HTML / unquote(urlsplit(urljoin(f"/{name}", parts.path)).path).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            if name == "404.html" and not target.exists():  # its links begin at the site's own folder
                continue
            if not target.exists():
                wrong.append(f"{name}: {link} does not exist")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{name}: {link} has no such anchor")
        wrong += [f"{name}: the text of a link is a file: {text}" for text in page.named if FILE.fullmatch(text)]
        wrong += [f"{name}: a column of a table has no head" for head in page.heads if not head.strip()]
        wrong += [
            f"{name}: not read as Markdown: {line[:60]}"
            for text in page.texts
            for line in text.splitlines()
            if re.match(r"\s*([*|]|\d+\.|#+|```)( |$)", line)
        ]
    if wrong:
        raise SystemExit("\n".join(f"site: {one}" for one in wrong))
    links = sum(len(page.links) for page in pages.values())
    print(f"site: {len(pages)} pages, {links} links checked, in {HTML.relative_to(ROOT)}")


def _write_texts() -> None:
    """Write llms.txt with links to the Markdown of the pages, these, and llms-full.txt: all of them in its order."""
    index = (ROOT / "llms.txt").read_text(encoding="utf-8")
    names = [name for name in LINK.findall(index) if not urlsplit(name).scheme]
    whole = [index]
    for name in dict.fromkeys(names):
        there = place(ROOT / name)
        if there is None:
            raise SystemExit(f"site: llms.txt names {name}, which is no page of the site")
        text = (SOURCE / there).read_text(encoding="utf-8")
        (HTML / there).write_text(text, encoding="utf-8")
        whole.append(f"<!-- {name} -->\n\n{text}")
    (HTML / "llms.txt").write_text(
        LINK.sub(lambda found: found[0] if urlsplit(found[0]).scheme else str(place(ROOT / found[0])), index),
        encoding="utf-8",
    )
    (HTML / "llms-full.txt").write_text("\n".join(whole), encoding="utf-8")


if __name__ == "__main__":
    {"stage": stage, "check": check}[sys.argv[1]]()
