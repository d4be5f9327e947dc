"""Standard input and output as the protocol's own, out of reach of everything else in the process."""

from __future__ import annotations

import io
import json
import os
import select
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK = 1 << 16


class Wire:
    """The two descriptors that lead to the client.

    Whoever reads first takes chunks with `read`, sends with `send`, and passes on what the server must hear; after
    `release` the server reads for itself. It finds all that in `stdin`.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        """`close` closes both descriptors."""
        self._read_fd, self._write_fd = read_fd, write_fd
        self._wake = None if sys.platform == "win32" else os.pipe()  # there a blocked read cannot be ended
        self._passed: deque[memoryview] = deque()
        self._released = self._ended = False
        self._news = threading.Condition()
        self._writing = threading.Lock()
        self._hidden: set[str] = set()
        self._unfinished = b""
        self.stdin = io.BufferedReader(_Incoming(self), _CHUNK)

    @classmethod
    def claim(cls) -> Wire:
        """Take the process's standard input and output.

        From now on whatever else reads there finds the end of input, and what is printed there goes to stderr; this
        includes native code and child processes.
        """
        wire = cls(os.dup(0), os.dup(1))  # not inherited by children
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        if sys.platform == "win32":
            _rebind_standard_handles()
        return wire

    def read(self, most: int = _CHUNK) -> bytes:
        """Wait for input; b"" at its end and after `end`."""
        if not self._ended:
            if self._wake is not None:
                select.select([self._read_fd, self._wake[0]], [], [])
            if not self._ended and (chunk := os.read(self._read_fd, most)):
                return chunk
        self.end()
        return b""

    def pass_on(self, data: bytes) -> None:
        """Let the server read `data` next."""
        with self._news:
            if data:
                self._passed.append(memoryview(data))
            self._news.notify()

    def release(self) -> None:
        """Let the server read the rest for itself."""
        with self._news:
            self._released = True
            self._news.notify()

    def end(self) -> None:
        """End the input, for whoever is waiting for it too (on Windows only once something comes)."""
        with self._news:
            if not self._ended:
                self._ended = True
                if self._wake is not None:
                    os.write(self._wake[1], b"\0")
            self._news.notify()

    def close(self) -> None:
        """Close the descriptors, when nobody reads or writes any more."""
        for descriptor in (self._read_fd, self._write_fd, *(self._wake or ())):
            os.close(descriptor)

    def read_passed(self, most: int) -> bytes | memoryview:
        """Wait for what was passed on, then for input."""
        with self._news:
            self._news.wait_for(lambda: self._passed or self._released or self._ended)
            if self._passed:
                data = self._passed.popleft()
                if len(data) > most:
                    self._passed.appendleft(data[most:])
                return data[:most]
        return self.read(most)

    def send(self, data: bytes) -> None:
        """Write `data`, whole lines, except the answers that are hidden."""
        with self._writing:
            if self._hidden:
                data = self._visible(data)
            view = memoryview(data)
            while view:
                view = view[os.write(self._write_fd, view) :]

    def hide_answer_to(self, request_id: object) -> None:
        """Keep the server's next answer to this request from the client, who has one."""
        with self._writing:
            self._hidden.add(json.dumps(request_id))

    def _visible(self, data: bytes) -> bytes:
        shown = []
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            number = json.dumps(message.get("id"))
            if "method" not in message and number in self._hidden:
                self._hidden.discard(number)
            else:
                shown.append(line + b"\n")
        if not self._hidden:
            shown.append(self._unfinished)
            self._unfinished = b""
        return b"".join(shown)


class _Incoming(io.RawIOBase):
    """What the server reads."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._wire.read_passed(len(view))
        view[: len(data)] = data
        return len(data)


def _rebind_standard_handles() -> None:
    """Point Windows' own handles, which child processes inherit, to where descriptors 0 and 1 point now."""
    if sys.platform == "win32":
        import ctypes
        import msvcrt

        for number, descriptor in ((-10, 0), (-11, 1)):
            ctypes.windll.kernel32.SetStdHandle(number, ctypes.c_void_p(msvcrt.get_osfhandle(descriptor)))
