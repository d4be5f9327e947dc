"""The text of mails, web pages and Word documents as a reader sees it, without MIME, base64 and tags.

**The attacker** is the author of a document. **The harm**: the parser takes unlimited memory or time. So a separate
process reads the documents. If it exceeds its limits, it is ended, and only this document fails.
"""

from __future__ import annotations

import atexit
import importlib.util
import io
import re
from typing import BinaryIO

from promptmill.core.bounds import LARGEST_TEXT, WORKBOOK_MEMORY
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.feature import Format, part
from promptmill.files.format_table import all_formats
from promptmill.system import frames, runtime, subprocesses
from promptmill.system.installation import adding

_COMPUTING_S = 10.0  # seconds of processor time, and 10 more for each `_SIZE`; a web page of 100 MiB takes 30
_SIZE = 20 << 20
_REPLY_S = 180.0  # the limit of wall time, for a busy machine
_UNREADABLE = "takes too much time or memory to read, or is damaged"
_MAIL_BEGINS = re.compile(
    rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From [^\n]*\d\d:\d\d[^\n]*(?:\n|\Z)"
)  # the line before a mail, with the time of arrival
_QUOTED_FROM = re.compile(rb"(?m)^>(>*From )")  # a mail's line that began with `From `: mailboxes put `>` before it
_HELPER = subprocesses.Helper(__name__, _REPLY_S)
atexit.register(_HELPER.end)


def text_of(known: Format, data: bytes, halt: subprocesses.Halt | None = None) -> str:
    """Return the text of a document of this format. Blocks; `halt` ends the reading.

    Raises `PromptmillError` (`missing_dependency`, `invalid_input`); its message is the predicate of a sentence.
    """
    if any(importlib.util.find_spec(module) is None for module in known.packages):
        raise PromptmillError(Code.MISSING_DEPENDENCY, f"needs {known.title}", adding(known.extra))
    try:
        reply = _HELPER.ask(frames.packed({"text": known.text, "size": len(data)}), io.BytesIO(data), halt)
    except OSError:
        raise input_error("cannot be read, as no process for it starts") from None
    if reply is None:
        raise input_error(_UNREADABLE)
    if "problem" in reply:
        raise input_error(reply["problem"])
    return str(reply["text"])


def mails_in(data: bytes) -> list[bytes]:
    """Return the mails of a mailbox (.mbox). A line inside a mail that begins with `From ` starts no new mail.

    The standard library's `mailbox` opens files by path, which a call may not do, and ends a mail at such a line.

    >>> mails_in(b"From a Mon Jan  1 10:00:00 2024\\nSubject: 1\\n\\n>From b\\n\\nFrom c Mon Jan  1 10:01:00 2024\\n")
    [b'Subject: 1\\n\\nFrom b\\n\\n', b'']
    """
    begins = [*_MAIL_BEGINS.finditer(data)]
    if not begins:
        return [data]
    ends = [*(each.start() for each in begins[1:]), len(data)]
    return [_QUOTED_FROM.sub(rb"\1", data[each.end() : end]) for each, end in zip(begins, ends, strict=True)]


def _reply(asked: frames.Frame, incoming: BinaryIO) -> frames.Frame:
    """Answer the parent process; `incoming` holds the document."""
    from promptmill.files.web_pages import TOO_LONG  # imported only in the child process, because the parsers are heavy

    data = incoming.read(asked["size"])
    runtime.limit_computing(_COMPUTING_S * (1 + len(data) / _SIZE))
    text = part(asked["text"])(data)
    if len(text) > LARGEST_TEXT:
        return {"problem": TOO_LONG}
    return {"text": text.encode("utf-8", "replace").decode()}


def _problem(_: frames.Frame, error: Exception) -> frames.Frame:
    return {"problem": error.message if isinstance(error, PromptmillError) else _UNREADABLE}


def main() -> None:
    """Serve the parent process."""
    modules = [each.text.partition(":")[0] for each in all_formats() if each.text]
    subprocesses.serve_parent(_reply, _problem, modules, memory=WORKBOOK_MEMORY, computing_s=_COMPUTING_S)


if __name__ == "__main__":
    main()
