"""Files compressed as `.gz` or `.zst`, read and written as streams."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from promptmill.core.errors import PromptmillError, input_error

_LEVEL = 6  # gzip's own default; Python's is 9, three times slower for one percent


def reader(stream: IO[bytes], kind: str) -> IO[bytes]:
    """Return what the compressed `stream` holds; several members or frames count as one."""
    if kind == "gz":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream, mode="rb"))
    import pyarrow as pa

    return io.BufferedReader(_Readable(pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")))


@contextmanager
def writer(out: IO[bytes], kind: str) -> Iterator[IO[bytes]]:
    """Give a file whose content is written to `out`, compressed as `kind` says; `out` stays open.

    Equal content gives equal bytes. `""` gives `out` itself.
    """
    if not kind:
        yield out
    elif kind == "gz":
        with gzip.GzipFile("", "wb", _LEVEL, out, mtime=0) as packed:
            yield cast("IO[bytes]", packed)
    else:
        import pyarrow as pa

        with pa.CompressedOutputStream(pa.PythonFile(_Unclosed(out), "w"), "zstd") as packed:
            yield packed


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn what is wrong with a compressed file into a `PromptmillError` (`invalid_input`) that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _broken(path, error) from None
    except OSError as error:
        if error.errno is None:  # pyarrow's; those of the disk have a number
            raise _broken(path, error) from None
        raise


def _broken(path: Path, error: Exception) -> PromptmillError:
    return input_error(f"{path.name} is not a whole {path.suffix} file: {str(error).splitlines()[0]:.200}.")


class _Readable(io.RawIOBase):
    """A stream of pyarrow's as a file of Python's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Unclosed:
    """A file that stays open when whoever writes into it is done."""

    closed = False

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def write(self, data: Any) -> int:
        return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()

    def tell(self) -> int:
        return self._out.tell()

    def close(self) -> None:
        """Leave it open."""
