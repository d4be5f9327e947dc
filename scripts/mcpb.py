"""The desktop bundle: our sources, the manifest of desktop/ and pinned dependencies, packed by the official tool.

    scripts/mcpb [FILE]      # dist/promptmill-VERSION.mcpb; needs `mcpb`, or `npx`, which fetches it from npm

The bundle's server type is uv: the desktop program brings uv, which makes the environment at the first start, so that one
bundle fits every platform.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import promptmill
from promptmill.config.configuration import Configuration
from promptmill.server import create_server
from promptmill.service.service import Service

ROOT = Path(__file__).parent.parent
TOOL = "@anthropic-ai/mcpb@2.1.2"
FILES = ("pyproject.toml", "README.md", "LICENSE", "parameter.yaml", "servers/generation/src/generation.py")


def tools() -> list[dict[str, str]]:
    """Return the server's tools with the first sentence of each description."""
    listed = asyncio.run(create_server(Service(Configuration({"backend": "openai"})), locked=True).list_tools())
    return [
        {"name": tool.name, "description": re.split(r"(?<=\.)\s", tool.description or "", maxsplit=1)[0]}
        for tool in listed
    ]


def pins() -> str:
    """Return the versions that were tested together, as uv reads them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return f"\n[tool.uv]\nconstraint-dependencies = {json.dumps(pinned, indent=4)}\n"


def without_engines(project: str) -> str:
    """Return pyproject.toml without its extras: uv resolves them all, and vLLM wants another numpy than the pinned one."""
    kept = re.sub(r"(?ms)^\[project\.optional-dependencies\]$.*?(?=^\[)", "", project)
    assert "optional-dependencies" not in tomllib.loads(kept)["project"]
    return kept


def stage(folder: Path) -> None:
    """Lay the bundle's files into `folder`."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    project = folder / "pyproject.toml"
    project.write_text(without_engines(project.read_text(encoding="utf-8")) + pins(), encoding="utf-8")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("desktop.yaml", "icon.png"):
        shutil.copy(ROOT / "desktop" / name, folder)
    manifest = json.loads((ROOT / "desktop" / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {"version": promptmill.__version__, "tools": tools()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """Build, validate and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "dist" / f"promptmill-{promptmill.__version__}.mcpb"
    parser.add_argument("file", type=Path, nargs="?", default=default)
    file = parser.parse_args().file.absolute()
    own, npx = shutil.which("mcpb"), shutil.which("npx")
    if not own and not npx:
        sys.exit("mcpb: neither mcpb nor npx is here; install Node.js, which brings npx.")
    official = [own] if own else [npx, "--yes", TOOL]
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder))
        subprocess.run([*official, "validate", str(Path(folder, "manifest.json"))], check=True)
        subprocess.run([*official, "pack", folder, str(file)], check=True, stdout=subprocess.DEVNULL)
    print(f"{file}  {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
