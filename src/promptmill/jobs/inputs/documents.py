"""The text of mails, web pages and Word documents as a reader sees it, without MIME, base64 and tags.

**The attacker** is the author of a document. **The harm**: the parser takes unlimited memory or time. So a separate
process reads the documents. If it exceeds its limits, it is ended, and only this document fails.

>>> mail_text(b"Subject: Hi\\n\\nText")
'Subject: Hi\\n\\nText'
>>> page_text(b"<p>One &amp; two</p><script>x</script><p>three")
'One & two\\n\\nthree'
"""

from __future__ import annotations

import atexit
import contextlib
import email
import email.policy
import importlib.util
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from html.parser import HTMLParser
from types import MappingProxyType
from typing import Any, BinaryIO

from promptmill.core.bounds import LARGEST_FILE, LARGEST_TEXT, WORKBOOK_MEMORY
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.system import frames, subprocesses
from promptmill.system.installation import adding

_COMPUTING_S = 60.0  # of processor time: a page of 100 MiB takes half a minute
_REPLY_S = 180.0  # of wall time, for a busy machine
_WORD = ".docx"
_SHOWN_HEADERS = ("From", "To", "Cc", "Subject", "Date")
_CHARSET = re.compile(rb"""(?i)<meta\b[^<>]{1,200}?charset ?= ?["']?([\w-]+)""")
_HIDDEN = frozenset({"script", "style", "template", "noscript", "svg", "head"})
_READ = frozenset({"title", "pre"})
_BLOCKS = frozenset(
    {
        *("p", "div", "section", "article", "header", "footer", "main", "aside", "blockquote", "pre", "form"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "hr", "figure"),
    }
)
_LINES = frozenset({"br", "li", "tr", "dt", "dd", "option"})
_CELLS = frozenset({"td", "th"})


def mail_text(data: bytes) -> str:
    """Return a mail as text: sender, receivers, subject, date and body. Attachments are only named."""
    size = re.match(rb"\d+\s*\n", data)  # the first line of Apple Mail's .emlx
    mail = email.message_from_bytes(data[size.end() :] if size else data, policy=email.policy.default)
    head = [f"{name}: {value}" for name in _SHOWN_HEADERS if (value := _header(mail, name))]
    body = mail.get_body(("plain", "html"))
    text = "" if body is None else _decoded(body)
    if body is not None and body.get_content_subtype() == "html":
        text = page_text(text.encode())
    files = [part.get_filename() or part.get_content_type() for part in mail.iter_attachments()]
    names = [f"Attachments: {', '.join(files)}"] if files else []
    return "\n".join([*head, *names]) + "\n\n" + text.strip()


def _header(mail: EmailMessage, name: str) -> str:
    try:
        return str(mail[name] or "").replace("\n", " ")
    except (ValueError, LookupError, IndexError, AttributeError):  # the parser meets unknown content
        return ""


def _decoded(part: Any) -> str:
    """Return the text of a part, even if its charset is wrong."""
    try:
        return str(part.get_content())
    except (LookupError, ValueError, AttributeError):
        return bytes(part.get_payload(decode=True) or b"").decode("utf-8", "replace")


def page_text(data: bytes) -> str:
    """Return the text of a web page, one line for each block, list item and table row."""
    named = _CHARSET.search(data[:4096])
    reader = _Reader()
    reader.feed(_text(data, named[1].decode() if named else ""))
    reader.close()
    lines = (re.sub(r"[^\S\n\t]+", " ", line).strip() for line in "".join(reader.texts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _text(data: bytes, charset: str) -> str:
    for encoding in ("utf-8-sig", charset, "cp1252"):
        with contextlib.suppress(LookupError, ValueError):
            return data.decode(encoding)
    return data.decode("utf-8", "replace")


class _Reader(HTMLParser):
    """Collects the visible texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._open: list[str] = []
        """The open elements that change how a text is read."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Start a line, a cell or a block."""
        if tag == "body":
            self._open.clear()
        elif tag in _BLOCKS or tag == "title":
            self.texts.append("\n\n")
        elif tag in _LINES:
            self.texts.append("\n- " if tag == "li" else "\n")
        elif tag in _CELLS:
            self.texts.append("\t")
        elif tag == "img" and (words := dict(attrs).get("alt")):
            self.handle_data(f"[{words}]")
        if tag in _HIDDEN or tag in _READ:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """End a block."""
        if tag in self._open:
            del self._open[self._open.index(tag) :]
        if tag in _BLOCKS or tag == "title":
            self.texts.append("\n\n")

    def handle_data(self, data: str) -> None:
        """Keep a text that is visible."""
        inner = self._open[-1] if self._open else ""
        if inner == "pre":
            self.texts.append(data)
        elif inner == "title" or not self._open:
            self.texts.append(re.sub(r"\s+", " ", data))


def word_text(data: bytes) -> str:
    """Return the text of a Word document. The cells of its tables are separated by tabs.

    Raises `PromptmillError` (`invalid_input`); its message is the predicate of a sentence.
    """
    import docx
    from docx.table import Table

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(one.file_size for one in packed.infolist()) > LARGEST_FILE:
                raise input_error(f"unpacks to more than {LARGEST_FILE >> 20} MiB")
        document = docx.Document(io.BytesIO(data))
        parts = [
            "\n".join("\t".join(cell.text.strip() for cell in row.cells) for row in part.rows)
            if isinstance(part, Table)
            else part.text
            for part in document.iter_inner_content()
        ]
    except PromptmillError:
        raise
    except Exception:  # noqa: BLE001 (the parser may raise any exception for a damaged file)
        raise input_error("is no Word document that can be read") from None
    return "\n".join(parts).strip()


_READERS: Mapping[str, Callable[[bytes], str]] = MappingProxyType(
    {
        **dict.fromkeys((".eml", ".emlx", ".mht", ".mhtml"), mail_text),
        **dict.fromkeys((".html", ".htm", ".xhtml"), page_text),
        _WORD: word_text,
    }
)
SUFFIXES = frozenset(_READERS)
"""The suffixes of documents."""
_UNREADABLE = "takes too much time or memory to read, or is damaged"
_HELPER = subprocesses.Helper(__name__, _REPLY_S)
atexit.register(_HELPER.end)


def text_of(suffix: str, data: bytes) -> str:
    """Return the text of a document with this suffix. Blocks.

    Raises `PromptmillError` (`missing_dependency`, `invalid_input`); its message is the predicate of a sentence.
    """
    if suffix == _WORD and importlib.util.find_spec("docx") is None:
        raise PromptmillError(Code.MISSING_DEPENDENCY, "needs python-docx", adding("files"))
    try:
        reply = _HELPER.ask(frames.packed({"suffix": suffix, "size": len(data)}), io.BytesIO(data))
    except OSError:
        raise input_error("cannot be read, as no process for it starts") from None
    if reply is None:
        raise input_error(_UNREADABLE)
    if "problem" in reply:
        raise input_error(reply["problem"])
    return str(reply["text"])


def _reply(asked: frames.Frame, incoming: BinaryIO) -> frames.Frame:
    """Answer the parent process; `incoming` holds the document."""
    data = incoming.read(asked["size"])
    text = _READERS[asked["suffix"]](data)
    if len(text) > LARGEST_TEXT:
        return {"problem": f"has more than {LARGEST_TEXT >> 20} million characters"}
    return {"text": text.encode("utf-8", "replace").decode()}


def _problem(_: frames.Frame, error: Exception) -> frames.Frame:
    return {"problem": error.message if isinstance(error, PromptmillError) else _UNREADABLE}


def main() -> None:
    """Serve the parent process."""
    subprocesses.serve_parent(_reply, _problem, memory=WORKBOOK_MEMORY, computing_s=_COMPUTING_S)


if __name__ == "__main__":
    main()
