"""A long streamed answer in small pieces, as an endpoint may send it: `python -m benchmarks.long_stream [PIECES]`.

An endpoint streams 1 MB of text in 50,000 pieces, each a chunk of HTTP; a client reads it from our server's
`/v1/chat/completions`. Printed: CPU seconds of the server for the answer, and the longest gap of its event loop. The
figures to keep: at most 1 s of CPU, and no gap above 50 ms. Before answers were shown only from time to time, 16,000
pieces took 3.2 s, and 50,000 stopped the server for four minutes.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import threading
import time

import orjson
import psutil

from benchmarks.stalls import OverHttp, Server

_PIECE = "twenty characters ok"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    event = orjson.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})
    return b"%x\r\ndata: %b\n\n\r\n" % (len(event) + 8, event)


def _serve(listener: socket.socket, pieces: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), connection, connection.makefile("rb") as reading:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                length = 0
                while (line := reading.readline()) not in {b"\r\n", b""}:
                    name, _, value = line.lower().partition(b":")
                    length = int(value) if name == b"content-length" else length
                reading.read(length)
                connection.sendall(_HEAD)
                piece = _event({"content": _PIECE})
                for _ in range(pieces):
                    connection.sendall(piece)
                connection.sendall(_event({}, "stop") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _read(port: int) -> int:
    """Return the number of characters of the streamed answer."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", orjson.dumps(body), {"Content-Type": "application/json"})
        lines = connection.getresponse().read().splitlines()
    events = [orjson.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    return sum(len(choice["delta"].get("content") or "") for event in events for choice in event["choices"])


def main() -> None:
    """Print the figures of a short and of a long answer."""
    pieces = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    for count in (10, pieces):
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=_serve, args=(listener, count), daemon=True).start()
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", {}, over="http")
        try:
            OverHttp(server)
            port = int(server.said().split("127.0.0.1:")[1].split("/")[0])
            _read(port)  # imports what a first stream needs
            known, times = len(server.gaps()), psutil.Process(server.process.pid).cpu_times()
            began = time.perf_counter()
            characters = _read(port)
            took_s = time.perf_counter() - began
            after = psutil.Process(server.process.pid).cpu_times()
            cpu_s = after.user + after.system - times.user - times.system
            longest = max((gap["wall"] for gap in server.gaps()[known:]), default=0.0)
            print(
                f"{count:,} pieces, {characters:,} characters: {cpu_s:.2f} s CPU, {took_s:.2f} s, "
                + (f"longest gap {longest * 1000:.0f} ms" if longest else "no gap above 50 ms")
            )
        finally:
            server.close()
            listener.close()


if __name__ == "__main__":
    main()
