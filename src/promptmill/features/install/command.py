"""The command `promptmill install CLIENT`, which prints each step and, unless it is a dry run, applies it.

`CLIENTS` has a row for each MCP client: its configuration file, the form of its entries, and the folder in which it
starts servers. The sources, read in November 2026, are the documentation of each client: claude.com/docs (Claude
Desktop and Claude Code), cursor.com/docs, code.visualstudio.com/docs, developers.openai.com/codex, geminicli.com,
docs.windsurf.com; for the folders also modelcontextprotocol.io/docs/tools/debugging (Claude Desktop: `/`) and
microsoft/vscode #250078 (home).

The entry is written into the file even if the client has a command for it (`codex mcp add`), because such commands
rewrite other entries, lose comments and keep no copy.

`promptmill install ultrarag CHECKOUT` replaces only the generation server of the checkout, by promptmill's launcher.
Git tracks this file: `git checkout` restores the original, and nothing else was changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from promptmill.config import parameter_file
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError, config_error, looks_like_key
from promptmill.core.feature import features
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.install import client_file
from promptmill.features.install.file_steps import FileStep, keep_at, make_folder, put_back, remove, write
from promptmill.system.call_files import holds_everything
from promptmill.system.safe_open import home_expanded
from promptmill.system.state import own_folder

_FOLDER = "allowed_roots="
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SERVER = Path("servers", "generation")
_LAUNCHER = _SERVER / "src" / "generation.py"
_BELONG = (_LAUNCHER, _SERVER / "parameter.yaml", Path("src", "ultrarag", "client.py"))
_PLACE = b'INTERPRETER = ""'
_OURS = b"PROMPTMILL_PYTHON"  # a text that no other generation.py contains
_KEYS = """\
No API key was written. Desktop programs do not see your shell's variables: pass one on by its name with --env NAME, or
set `api_key` in the configuration file. A server without keys needs neither."""
_KEYS_BY_HAND = """\
No API key was written. Desktop programs do not see your shell's variables: put "env": {"LLM_API_KEY": "…"} into the
entry yourself, or set `api_key` in the configuration file. A server without keys needs neither."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client. `file` returns the path of its configuration file; `key` is the file's key for servers."""

    name: str
    title: str
    file: Callable[[], Path]
    key: str = "mcpServers"
    more: JsonObject = field(default_factory=dict)
    """Additional fields of each entry."""
    variable: str | None = None
    """The client's syntax for a reference to an environment variable; None if it has no such syntax."""
    gives_up: bool = False
    """Whether the client aborts a call after about a minute."""
    has_project: bool = False
    """Whether the client starts servers in the user's project folder; others use `/` or the home folder."""
    afterwards: str = ""
    """A sentence about the user's next step."""


def _home(*parts: str) -> Callable[[], Path]:
    return lambda: Path.home().joinpath(*parts)


def _roaming(*parts: str) -> Callable[[], Path]:
    """Return a function that finds a path in the folder in which applications keep the user's settings."""

    def found() -> Path:
        import platformdirs

        return platformdirs.user_config_path(parts[0], appauthor=False, roaming=True).joinpath(*parts[1:])

    return found


def _claude_desktop() -> Path:
    """Return the file of Claude Desktop. A program that is a Windows package reads only files in the package's folder.

    The Microsoft Store and the 2026 installer install a package (anthropics/claude-code#26073).
    """
    usual = _roaming("Claude", "claude_desktop_config.json")()
    packages = Path(os.environ.get("LOCALAPPDATA", ""), "Packages")
    folders = packages.glob("Claude_*/LocalCache/Roaming/Claude") if packages.is_absolute() else ()
    return max((folder / usual.name for folder in folders), key=Path.exists, default=usual)


def _codex() -> Path:
    return Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex") / "config.toml"


CLIENTS: Sequence[Client] = (
    Client(
        "claude-desktop",
        "Claude Desktop",
        _claude_desktop,
        gives_up=True,
        afterwards="Quit Claude Desktop and start it again: it reads its configuration only at the start.",
    ),
    Client(
        "claude-code",
        "Claude Code",
        _home(".claude.json"),
        more={"type": "stdio"},
        variable="${%s}",
        has_project=True,
        afterwards="`claude mcp list` shows it; a running session sees it after a restart.",
    ),
    Client("cursor", "Cursor", _home(".cursor", "mcp.json"), variable="${env:%s}", gives_up=True),
    Client(
        "vscode",
        "VS Code",
        _roaming("Code", "User", "mcp.json"),
        key="servers",
        more={"type": "stdio"},
        variable="${env:%s}",
        afterwards="`MCP: List Servers` in the command palette starts it.",
    ),
    Client(
        "codex",
        "Codex",
        _codex,
        key="mcp_servers",
        gives_up=True,
        has_project=True,
        variable="%s",
        afterwards="`codex mcp list` shows it. ChatGPT's desktop app reads the same file.",
    ),
    Client(
        "gemini-cli",
        "Gemini CLI",
        _home(".gemini", "settings.json"),
        variable="$%s",
        has_project=True,
        afterwards="`gemini mcp list` shows it.",
    ),
    Client(
        "windsurf",
        "Windsurf",
        _home(".codeium", "windsurf", "mcp_config.json"),
        variable="${env:%s}",
        gives_up=True,
        afterwards="Press Refresh in Cascade's list of MCP servers.",
    ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command `install`. `unconfigured` is set to the function that runs it."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dry-run", action="store_true", help="print the steps without doing them")
    shared.add_argument("--undo", action="store_true", help="remove the entry again")
    targets = parser.add_subparsers(required=True, metavar="CLIENT")
    for client in CLIENTS:
        target = targets.add_parser(client.name, parents=[shared], help=f"add an entry to {client.title}")
        target.add_argument(
            "--config", type=Path, metavar="PATH", help="promptmill's configuration file, which the entry names"
        )
        target.add_argument(
            "--file", type=Path, metavar="PATH", help=f"{client.title}'s file, if it is not the usual one"
        )
        target.add_argument(
            "--folder", type=Path, metavar="PATH", help="the folder whose files calls may use, made if it is missing"
        )
        target.add_argument("--name", default="promptmill", help="the entry's name (promptmill)")
        target.add_argument(
            "--env",
            action="append",
            default=[],
            metavar="NAME",
            help="an environment variable that the entry passes on, such as OPENAI_API_KEY; its value is not written",
        )
        target.set_defaults(unconfigured=_client, client=client)

    if "ultrarag" not in features():
        return
    pipelines = targets.add_parser(
        "ultrarag", parents=[shared], help="become the generation server of a checkout of UltraRAG"
    )
    pipelines.add_argument(
        "checkout", type=Path, metavar="CHECKOUT", help="the folder that contains servers/generation"
    )
    pipelines.set_defaults(unconfigured=_ultrarag)


def _client(arguments: argparse.Namespace) -> int:
    client: Client = arguments.client
    _refuse_values(arguments.env)
    file = arguments.file or (client.file() if arguments.dry_run else _usual_file(client))
    if not file.parent.is_dir() and not arguments.dry_run:
        raise config_error("--file", f"there is no folder {file.parent}; correct the path, or create the folder first.")
    if arguments.undo:
        steps = client_file.undo(file, client.key, arguments.name)
        return _apply(steps, f"{file} has no entry {arguments.name}.", arguments)
    named, configuration = _named_configuration(arguments.config)
    folder = arguments.folder and _usable(arguments.folder)
    there: JsonObject = {}
    with contextlib.suppress(PromptmillError):  # reported below, where the steps raise the error again
        there = client_file.entry_in(file, client.key, arguments.name)
    if folder is None and not client.has_project and configuration.config.operator.allowed_roots is None:
        folder = _folder_of(there) or _asked_folder(client, is_dry=arguments.dry_run)
    added = client_entry(client, named, arguments.env, folder)
    result = client_file.over(there, added)
    try:
        steps = client_file.install(file, client.key, arguments.name, added)
    except PromptmillError:
        print(_entry_text(file, arguments, added))  # so that the user can add the entry by hand
        raise
    if folder is not None and not folder.is_dir():
        steps = [make_folder(folder), *steps]
    code = _apply(steps, f"{file} has this entry already.", arguments)
    keys = "" if result.get("env") or result.get("env_vars") else _KEYS if client.variable else _KEYS_BY_HAND
    more = ["--undo restores the earlier entry." if there else "", keys, client.afterwards] if steps else []
    print(
        "\n".join(
            line
            for line in (_entry_text(file, arguments, result), *more, _lost_with(Path(__file__), Path(sys.prefix)))
            if line
        )
    )
    return code


def _entry_text(file: Path, arguments: argparse.Namespace, entry: JsonObject) -> str:
    text = client_file.written(file, arguments.client.key, arguments.name, entry)
    return f"The entry:\n{text.rstrip()}"


def _lost_with(*places: Path) -> str:
    """Return a warning if one of `places`, which the entry needs, is inside a checkout; else `""`."""
    folders = [folder for place in places for folder in place.resolve().parents]
    checkout = next((folder for folder in folders if (folder / ".git").exists()), None)
    if checkout is None:
        return ""
    return (
        f"The entry starts the promptmill of the checkout {checkout} and needs it. To install promptmill "
        f"apart, and then the entry again:\n  uv tool install {shlex.quote(str(checkout))}"
    )


def _refuse_values(given: Sequence[str]) -> None:
    """Raise `PromptmillError` if `--env` has a value, as in NAME=VALUE. The message does not show the value."""
    for text in given:
        name = text.partition("=")[0]
        if _VARIABLE.fullmatch(text) and not looks_like_key(text):
            continue
        shown = name if _VARIABLE.fullmatch(name) and not looks_like_key(name) else "OPENAI_API_KEY"
        raise config_error(
            "", f"--env takes only a name: --env {shown}; the value stays in your shell. Nothing was written."
        )


def _usual_file(client: Client) -> Path:
    """Return the path of the client's configuration file. Raises `PromptmillError` if the client is not installed."""
    file = client.file()
    if file.exists() or (file.parent != Path.home() and file.parent.is_dir()):
        return file
    missing = f"{file} is" if file.parent == Path.home() else f"the folder {file.parent} is"
    raise config_error(
        "", f"{client.title} seems not to be installed: {missing} missing. Start it once, or name its file with --file."
    )


def _usable(folder: Path) -> Path:
    """Return the absolute path of a folder for files. Raises `PromptmillError` if it holds all files of the user."""
    folder = home_expanded(folder).absolute()
    if holds_everything(folder):
        raise config_error("--folder", f"{folder} holds all files of the user; name a folder for this purpose.")
    return folder


def _folder_of(entry: JsonObject) -> Path | None:
    """Return the folder that an earlier entry has configured."""
    arguments = entry.get("args")
    for argument in arguments if isinstance(arguments, list) else ():
        if str(argument).startswith(_FOLDER):
            with contextlib.suppress(ValueError, IndexError, TypeError):
                return Path(json.loads(str(argument).removeprefix(_FOLDER))[0])
    return None


def _asked_folder(client: Client, *, is_dry: bool) -> Path:
    """Return the folder that the user chooses; by default, a folder in the home folder."""
    usual = Path.home() / "promptmill"
    if is_dry or not sys.stdin.isatty():
        return usual
    print(f"{client.title} starts servers where calls may use no file. Which folder may they use?")
    answer = input(f"Folder [{usual}]: ").strip()
    return _usable(Path(answer)) if answer else usual


def _named_configuration(given: Path | None) -> tuple[Path | None, Configuration]:
    """Return the configuration file for the entry (None if promptmill finds it from every folder), and its content.

    Raises `PromptmillError` if the file is missing or invalid.
    """
    found = parameter_file.find(given)
    configuration = Configuration.load(found)
    depends = given or os.environ.get("PROMPTMILL_CONFIG") or found == Path(parameter_file.FILE_NAME)
    return found if depends else None, configuration


def _ultrarag(arguments: argparse.Namespace) -> int:
    checkout = arguments.checkout
    if arguments.undo:
        return _apply(undo_launcher(checkout), "The checkout's own generation server is in place.", arguments)
    return _apply(install_launcher(checkout), "It is installed already.", arguments)


def _apply(steps: Sequence[FileStep], otherwise: str, arguments: argparse.Namespace) -> int:
    for step in steps:
        print(f"would {step.words}" if arguments.dry_run else step.words)
        if not arguments.dry_run:
            try:
                step.act()
            except OSError as error:
                raise config_error("", f"cannot {step.words}: {error.strerror}.") from None
    if not steps:
        print(otherwise)
    return 0


def client_entry(
    client: Client, configuration: Path | None = None, variables: Sequence[str] = (), folder: Path | None = None
) -> JsonDict:
    """Return the entry that starts promptmill in `client`. Its paths are absolute, because desktop programs lack PATH.

    `variables`: names of environment variables that the entry passes on; their values are never written. `folder`: the
    folder for `allowed_roots`. Raises `PromptmillError` (`invalid_config`) if the client cannot refer to variables.
    """
    script = Path(sys.executable).with_name("promptmill.exe" if sys.platform == "win32" else "promptmill")
    start = [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "promptmill"]
    arguments = [*start[1:], "serve"]
    if configuration is not None:
        arguments += ["--config", str(configuration.absolute())]
    if folder is not None:
        arguments += ["--set", f"{_FOLDER}{json.dumps([str(folder)], ensure_ascii=False)}"]
    if client.gives_up:
        # Calls are limited, because several clients abort a call after a minute.
        arguments += ["--set", "max_call_s=50"]
    found: JsonDict = {**client.more, "command": start[0], "args": arguments}
    if variables and client.variable is None:
        raise config_error(
            "--env",
            f'{client.title} cannot pass on a variable by its name: add "env": {{"{variables[0]}": "…"}} to the '
            "entry yourself, or let the configuration file hold `api_key`.",
        )
    if variables and client.key == "mcp_servers":
        found["env_vars"] = list(variables)
    elif variables and client.variable:
        found["env"] = {name: client.variable % name for name in variables}
    return found


def install_launcher(checkout: Path) -> list[FileStep]:
    """Return the steps that put a launcher, which starts this Python, into `checkout`; none if it is already there.

    Raises `PromptmillError` when `checkout` is not a checkout of UltraRAG.
    """
    launcher = _launcher_in(checkout)
    ours = launch_file().read_bytes().replace(_PLACE, f"INTERPRETER = {sys.executable!a}".encode(), 1)
    steps = [] if _is_ours(launcher) else [keep_at(_backup_of(launcher), launcher)]
    return steps if launcher.read_bytes() == ours else [*steps, write(launcher, ours)]


def undo_launcher(checkout: Path) -> list[FileStep]:
    """Return the steps that restore the checkout's own generation server; none if it is already restored.

    Raises `PromptmillError` if `checkout` is not a checkout of UltraRAG, or if there is no copy of its server.
    """
    launcher = _launcher_in(checkout)
    backup = _backup_of(launcher)
    if not _is_ours(launcher):  # the user has restored it already
        return [remove(backup)] if backup.exists() else []
    if not backup.exists():
        raise config_error("", f"{backup} is missing; run `git checkout -- {_LAUNCHER.as_posix()}` in the checkout.")
    return [put_back(launcher, backup)]


def launch_file() -> Path:
    """Return the path of the launcher, which is in a wheel or in a checkout of promptmill."""
    package = Path(__file__).parents[2]
    places = (package / _LAUNCHER, package.parents[1] / _LAUNCHER)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise config_error("", f"This installation of promptmill lacks {_LAUNCHER}; install promptmill again.")
    return found


def _launcher_in(checkout: Path) -> Path:
    lacking = [str(part) for part in _BELONG if not (checkout / part).is_file()]
    if lacking:
        raise _no_checkout(checkout, lacking[0])
    return checkout.absolute() / _LAUNCHER


def _backup_of(launcher: Path) -> Path:
    """Return the path, outside of the checkout, for the copy of the checkout's own server."""
    name = hashlib.sha256(os.fsencode(launcher.resolve())).hexdigest()[:16]
    return own_folder() / "ultrarag" / name / launcher.name


def _no_checkout(checkout: Path, lacking: str) -> PromptmillError:
    return config_error("", f"{checkout.absolute()} is not a checkout of UltraRAG: {lacking} is missing.")


def _is_ours(launcher: Path) -> bool:
    return _OURS in launcher.read_bytes()
