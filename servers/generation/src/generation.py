"""The generation server as pipelines start it: `python servers/generation/src/generation.py`, over stdio.

Pipelines start it in an environment of their own, which need not hold promptmill and whose packages may be of versions
that promptmill cannot use. So this file needs nothing but Python 3.8, finds the interpreter that owns promptmill and
hands over to it:

1. the one that the variable PROMPTMILL_PYTHON names,
2. else the one that `promptmill install ultrarag CHECKOUT` wrote into this file,
3. else the one that runs this file, if promptmill is installed next to it,
4. else the one of the virtual environment around this file, as in a checkout of promptmill or in an installed package,
5. else the one that runs this file.

Run as a script, as pipelines run it, the client counts as the operator's own program. Run by `mcp run`, `fastmcp run`
or what `mcp install` writes, it does not: then any client may be at the other end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).absolute().parent
INTERPRETER = ""
# What an activated or embedding environment leaves behind for its own interpreter; another one would be misled by it.
FOREIGN = (
    "PYTHONEXECUTABLE",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONPLATLIBDIR",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "VIRTUAL_ENV",
    "VIRTUAL_ENV_PROMPT",
    "__PYVENV_LAUNCHER__",
)
# Runs in the other interpreter. The working directory leaves the path: what lies there may have any name.
START = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
def sorry(why):
    sys.stderr.write("generation.py: %s %s. Set PROMPTMILL_PYTHON to the Python that promptmill is installed for, or "
                     "run `promptmill install ultrarag CHECKOUT` with that one.\\n" % (sys.executable, why))
    sys.exit(2)
if sys.version_info < (3, 11):
    sorry("is Python %d.%d, and promptmill needs 3.11 or newer" % sys.version_info[:2])
try:
    import promptmill
except ImportError:
    sorry("has no promptmill")
from promptmill.features.ultrarag.launch import main
sys.exit(main(sys.argv[1:]))
"""


def complain(problem: str) -> NoReturn:
    """End with what is wrong; standard output belongs to the protocol."""
    sys.stderr.write("generation.py: " + problem + "\n")
    sys.exit(2)


def find_interpreter() -> str:
    """Return the path of the interpreter that owns promptmill."""
    named, said_by = os.environ.get("PROMPTMILL_PYTHON", "").strip(), "The variable PROMPTMILL_PYTHON"
    if not named:
        named, said_by = INTERPRETER, str(HERE / "generation.py")
    if not named:
        own = Path(sys.executable)
        return sys.executable if has_promptmill(own.parent) else interpreter_around() or sys.executable
    found = shutil.which(str(Path(named).expanduser()))  # a path or a command
    if found is None:
        complain(
            said_by + " names " + named + ", which is not there. Name the Python that promptmill is installed for, "
            "or run `promptmill install ultrarag CHECKOUT` with that one."
        )
    return str(Path(found).absolute())  # not resolved: a virtual environment is known by its link


def has_promptmill(programs: Path) -> bool:
    """Return whether promptmill's command is in a folder of programs."""
    return any((programs / name).is_file() for name in ("promptmill", "promptmill.exe"))


def interpreter_around() -> str:
    """Return the path of the interpreter of the virtual environment around this file; "" if none has promptmill."""
    programs, name = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    for folder in HERE.parents:
        for environment in (folder, folder / ".venv"):
            if (environment / "pyvenv.cfg").is_file() and has_promptmill(environment / programs):
                return str(environment / programs / name)
    return ""


def environment_for(interpreter: str) -> dict[str, str]:
    """Return the environment without what another interpreter left in it."""
    environment = dict(os.environ)
    if interpreter == sys.executable:
        return environment
    for name in FOREIGN:
        environment.pop(name, None)
    paths = [str(Path(interpreter).parent), *environment.get("PATH", "").split(os.pathsep)]
    environment["PATH"] = os.pathsep.join(filter(None, paths))  # programs that belong to promptmill's packages
    return environment


def command_of(interpreter: str, *arguments: str) -> list[str]:
    """Return the command line of the server."""
    return [interpreter, "-c", START, str(HERE.parent), *arguments]


def tools_of_server() -> list[dict[str, object]]:
    """Return the tools as the server lists them: for the commands that list tools without running the file."""
    interpreter = find_interpreter()
    client = {"name": "launcher", "version": "1"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
    with subprocess.Popen(
        command_of(interpreter, "--untrusted"),
        env=environment_for(interpreter),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for message in (
            {"id": 1, "method": "initialize", "params": hello},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/list"},
        ):
            server.stdin.write(json.dumps(dict(message, jsonrpc="2.0")).encode() + b"\n")
        server.stdin.flush()
        for line in server.stdout:
            message = json.loads(line)
            if message.get("id") == 2:
                tools: list[dict[str, object]] = message["result"]["tools"]
                return tools
    raise RuntimeError("The server has ended without listing its tools; stderr has the reason.")


def main(*arguments: str) -> None:
    """Become the server."""
    interpreter = find_interpreter()
    command = command_of(interpreter, *arguments)
    environment = environment_for(interpreter)
    if sys.platform == "win32":
        sys.exit(run_as_child(command, environment))
    try:
        os.execve(interpreter, command, environment)
    except OSError as error:
        complain(f"{interpreter} cannot be started: {error.strerror}.")


def run_as_child(command: list[str], environment: dict[str, str]) -> int:
    """Run the server as a child that has our standard streams and ends with us; return its exit code.

    Windows has no exec: the one there would end this process, and the client would think that the server has ended.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child too, which ends as it should
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        complain(f"{command[0]} cannot be started: {error.strerror}.")
    job = tie(child)
    code = child.wait()
    del job
    return code


def tie(child: subprocess.Popen[bytes]) -> object:
    """Have Windows end `child` and its children with this process, however it ends; keep what is returned."""
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.CreateJobObjectW.restype = ctypes.c_void_p
    kernel.SetInformationJobObject.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32]
    kernel.AssignProcessToJobObject.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    size, word = ctypes.c_size_t, ctypes.c_uint32

    class Limits(ctypes.Structure):
        """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

        _fields_ = [
            ("times", ctypes.c_int64 * 2),
            ("flags", word),
            ("working_set", size * 2),
            ("active_processes", word),
            ("affinity", size),
            ("classes", word * 2),
            ("io", ctypes.c_uint64 * 6),
            ("memory", size * 4),
        ]

    kill_on_close, breakaway_ok = 0x2000, 0x0800  # detached jobs may outlive the server
    limits = Limits(flags=kill_on_close | breakaway_ok)
    job = kernel.CreateJobObjectW(None, None)
    if job and kernel.SetInformationJobObject(job, 9, ctypes.byref(limits), ctypes.sizeof(limits)):
        kernel.AssignProcessToJobObject(job, int(child._handle))  # type: ignore[attr-defined]
    return job


def __getattr__(name: str) -> object:
    """Give `mcp run`, `mcp dev` and `fastmcp run` the server object that they look for; running it hands over."""
    if name != "mcp":
        raise AttributeError(name)
    from mcp import Tool

    try:
        from mcp.server.mcpserver import MCPServer as Server
    except ImportError:  # 1.x
        from mcp.server.fastmcp import FastMCP as Server

    def serve() -> None:
        main("--untrusted")

    def refuse() -> NoReturn:
        complain("started like this it speaks only stdio: add --transport stdio.")

    class Launcher(Server):
        async def list_tools(self) -> list[Tool]:
            return [Tool.model_validate(tool) for tool in tools_of_server()]

        def run(self, transport: str = "stdio", **_: object) -> None:
            serve() if transport == "stdio" else refuse()

        async def run_stdio_async(self, **_: object) -> None:
            serve()

        async def run_streamable_http_async(self, **_: object) -> None:
            refuse()

    return Launcher("promptmill")


if __name__ == "__main__":
    main(*sys.argv[1:])
