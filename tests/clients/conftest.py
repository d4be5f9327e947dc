"""Clients in environments of their own, made on the first use in .venv-clients from the versions that are pinned here.

Fixtures: `sdk1` (the Python of an environment with clients of the MCP SDK's 1.x line), `agents` (the same of frameworks
for agents on the 2.x line), `llama` (the same of LlamaIndex), `openai_programs` (the same of programs that speak
OpenAI's API), `decisions` (the same of programs that ask models that decide), `npm` (the folder of programs from npm),
`server` (the command line of a server in front of `upstream`), `over_http` (one over HTTP), `calm` (the environment to
run clients in).
Where a registry cannot be reached, and nothing was made before, the tests are skipped.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import psutil
import pytest
import yaml

from replies import by_prompt, hang, status
from served import Served
from waiting import eventually

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".venv-clients"
UNREACHABLE = (
    *("Retrying (Retry(", "Failed to fetch", "error sending request"),  # pip, uv
    *("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH"),  # npm
)
ENVIRON = dict(os.environ)  # before it is sealed: installers may need its certificates and proxies


def _install(command, folder, wanted, **environ):
    """Run `command` unless `folder` holds what is `wanted` already."""
    stamp = folder / "done"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    done = subprocess.run(
        command, env=ENVIRON | environ, capture_output=True, text=True, timeout=500, check=False, cwd=folder
    )
    said = done.stdout + done.stderr
    if done.returncode and any(word in said for word in UNREACHABLE):
        pytest.skip(f"the registry cannot be reached: {said.strip().splitlines()[-1]}")
    assert not done.returncode, said
    stamp.write_text(wanted, encoding="utf-8")


def _python_of(folder):
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


@pytest.fixture(scope="session")
def uv():
    """The installer of all that comes from PyPI: pip takes minutes for what it does in ten seconds."""
    folder, pins = FOLDER / "uv-itself", "uv==0.13.8"
    python = _python_of(folder)
    if not python.exists():
        venv.create(folder, with_pip=True, clear=True)
    _install([python, "-m", "pip", "install", "-q", pins], folder, f"{pins} {sys.version}")
    return python.with_name("uv")


def _environment(uv, name):
    folder, pins = FOLDER / name, HERE / f"constraints-{name}.txt"
    python = _python_of(folder)
    if not python.exists():
        venv.create(folder, clear=True)
    wanted = f"{pins.read_text(encoding='utf-8')}{sys.version}"
    _install([uv, "pip", "install", "-q", "--python", python, "-r", pins], folder, wanted)
    return python


@pytest.fixture(scope="session")
def sdk1(uv):
    return _environment(uv, "sdk1")


@pytest.fixture(scope="session")
def agents(uv):
    return _environment(uv, "agents")


@pytest.fixture(scope="session")
def llama(uv):
    return _environment(uv, "llama")


@pytest.fixture(scope="session")
def openai_programs(uv):
    return _environment(uv, "openai")


@pytest.fixture(scope="session")
def decisions(uv):
    return _environment(uv, "decisions")


@pytest.fixture(scope="session")
def curator(uv):
    return _environment(uv, "curator")


@pytest.fixture(scope="session")
def lazyllm(uv):
    return _environment(uv, "lazyllm")


@pytest.fixture(scope="session")
def npm():
    program = shutil.which("npm")
    if program is None:
        pytest.skip("npm is not installed")
    folder, pins = FOLDER / "npm", HERE / "package.json"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(pins, folder)
    _install([program, "install", "--no-audit", "--no-fund"], folder, pins.read_text())
    return folder / "node_modules" / ".bin"


@pytest.fixture(scope="session")
def bundle(uv, npm, tmp_path_factory):
    """The desktop bundle: built, validated and packed by the official tool, unpacked, its environment made by uv."""
    folder = tmp_path_factory.mktemp("bundle")
    path = os.pathsep.join([str(npm), ENVIRON["PATH"]])
    script = HERE.parents[1] / "scripts" / "mcpb.py"
    done = subprocess.run(
        [sys.executable, script, folder / "it.mcpb"],
        env=ENVIRON | {"PATH": path},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    unpacked = folder / "it"
    with zipfile.ZipFile(folder / "it.mcpb") as packed:
        packed.extractall(unpacked)
    command = [uv, "sync", "--quiet", "--no-dev", "--project", unpacked]
    _install(command, unpacked, "", UV_PYTHON=sys.executable, UV_CACHE_DIR=str(FOLDER / "uv"))
    return unpacked


@pytest.fixture
def calm(tmp_path_factory):
    """The environment for a client: a home of its own, outside the folder where it starts servers, no colours."""
    home = tmp_path_factory.mktemp("home")
    bin_folder = str(Path(sys.executable).parent)
    return dict(os.environ) | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "NO_COLOR": "1",
        "COLUMNS": "400",
        "FASTMCP_CHECK_FOR_UPDATES": "off",
        "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
    }


@pytest.fixture
def online(uv, calm):
    """The same for a client that installs packages itself, with uv."""
    network = {name: value for name, value in ENVIRON.items() if re.search("PROXY|CERT|^UV_", name.upper())}
    path = os.pathsep.join([str(uv.parent), calm["PATH"]])
    return calm | network | {"PATH": path, "UV_CACHE_DIR": str(FOLDER / "uv")}


@pytest.fixture
def config(tmp_path, upstream):
    """A configuration file in front of an endpoint that refuses "bad" and never answers "hang".

    At the end of the test no server of it may be left.
    """
    upstream.reply = by_prompt({"bad": status(400, "no such thing"), "hang": hang()})
    file = tmp_path / "mine.yaml"
    block = {"model_name": "m", "base_url": upstream.url, "api_key": "test-key-0123456789abcdef"}
    file.write_text(yaml.safe_dump({"backend": "openai", "backend_configs": {"openai": block}}))
    yield file
    eventually(lambda: not _serving(file))


@pytest.fixture
def server(config):
    """The command line of a server."""
    return [sys.executable, "-m", "promptmill", "serve", "--config", str(config)]


@pytest.fixture
def over_http(config):
    """The same server over HTTP."""
    with Served(config) as served:
        yield served


def _serving(config):
    """Return the processes that serve `config`."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(config) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
