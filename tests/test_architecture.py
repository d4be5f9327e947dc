"""The direction of the arrows, what an import costs, and which names may stand where. See docs/architecture.md."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "promptmill"

# From the top floor to the ground. A module imports from lower floors and from its own package.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"api"},
    {"compat", "install"},
    {"server"},
    {"http"},
    {"compare"},
    {"report"},
    {"jobs"},
    {"service"},
    {"answering"},
    {"cluster"},
    {"backends.registry"},
    {"backends"},
    {"backends.questions"},
    {"backends.rows"},
    {"backends.protocol"},
    {"backends.batch_lines"},
    {"config"},
    {"images"},
    {"answers"},
    {"system"},
    {"core"},
)
SHARED = {
    "backends.batch_lines",
    "backends.protocol",
    "backends.questions",
    "backends.registry",
    "backends.rows",
}  # what the house may know of backends
HEAVY = {"torch", "transformers", "vllm", "aiohttp", "PIL", "pyarrow", "pandas", "numpy", "safetensors", "gguf", "rich"}
HEAVY |= {"openvino", "openvino_genai"}
# Modules that are themselves imported only on load, and those of an engine only in its own process.
AT_HOME = {
    "aiohttp": ("backends.openai.session", "images.fetch"),
    "torch": ("backends.engines.hf", "backends.engines.vllm"),
    "vllm": ("backends.engines.vllm",),
    "transformers": ("backends.engines.hf",),
    "safetensors": ("backends.engines.hf",),
    "gguf": ("backends.engines.hf",),
    "openvino": ("backends.engines.openvino",),
    "openvino_genai": ("backends.engines.openvino",),
    "numpy": ("backends.engines.hf", "backends.engines.openvino"),
}


def _modules() -> dict[str, Path]:
    """Return `backends.openai.run` → its file, for every module of the package."""
    found = {}
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = _modules()


def _imports(file: Path, *, top_level: bool = False) -> set[str]:
    """Return the dotted names that `file` imports; with `top_level` only what runs when it is imported itself."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = _run_on_import(tree) if top_level else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative imports hide the direction"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _run_on_import(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _run_on_import(child)


def _ours(file: Path) -> set[str]:
    """Return which of our modules `file` imports."""
    found = set()
    for name in _imports(file):
        module = name.removeprefix("promptmill.") if name.startswith("promptmill.") else ""
        while module and module not in MODULES:
            module = module.rpartition(".")[0]
        found.add(module)
    return found - {""}


def _floor(module: str) -> int:
    """Return the floor of a module, counted from the top: that of the longest name that leads to it."""
    while module:
        for number, names in enumerate(FLOORS):
            if module in names:
                return number
        module = module.rpartition(".")[0]
    return len(FLOORS)


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2]) if module.startswith("backends.") else module.split(".", maxsplit=1)[0]


@pytest.mark.parametrize("module", sorted(filter(None, MODULES)))
def test_arrows_run_downwards_only(module):
    assert _floor(module) < len(FLOORS), "a new module needs a floor in FLOORS"
    for other in _ours(MODULES[module]):
        same_room = _room(module) == _room(other)
        assert _floor(other) > _floor(module) or same_room, f"{module} may not import {other}"


@pytest.mark.parametrize("module", sorted(module for module in MODULES if module.startswith("backends.")))
def test_backends_never_import_each_other(module):
    rooms = {_room(other) for other in _ours(MODULES[module]) if other.startswith("backends.")}
    assert rooms <= {_room(module), *SHARED}


@pytest.mark.parametrize("room", ["server", "cli", "compat"])
def test_who_talks_to_people_never_imports_a_backend(room):
    modules = [module for module in MODULES if _room(module) == room]
    assert modules
    for module in modules:
        assert not {other for other in _ours(MODULES[module]) if other.startswith("backends.")} - SHARED


@pytest.mark.parametrize("module", sorted(filter(None, MODULES)))
def test_nothing_heavy_is_imported_at_the_top_of_a_file(module):
    heavy = {name.partition(".")[0] for name in _imports(MODULES[module], top_level=True)} & HEAVY
    assert not {name for name in heavy if not module.startswith(AT_HOME.get(name, ()))}


@pytest.mark.parametrize(
    "entry", ["promptmill.server", "promptmill.cli.main", "promptmill.service.service", "promptmill.server.process"]
)
def test_a_fresh_interpreter_imports_nothing_heavy(entry):
    code = f"import sys, {entry}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not set(loaded.stdout.split()) & (HEAVY - {"rich"}), "fastmcp itself brings rich"
    assert "promptmill" in loaded.stdout.split()


@pytest.mark.parametrize(
    "entry",
    ["promptmill.backends.openai.backend", "promptmill.backends.openai.worker", "promptmill.backends.engines.host"],
)
def test_our_side_of_a_backend_imports_nothing_heavy(entry):
    code = f"import sys, {entry}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not set(loaded.stdout.split()) & HEAVY


def test_the_options_of_a_command_are_known_without_a_large_import():
    code = "import sys; from promptmill.cli import main; main.parser_of(['serve']); print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    large = {"asyncio", "fastmcp", "mcp", "mcp_types", "orjson", "pydantic", "rich", "yaml"}
    assert not set(loaded.stdout.split()) & large, "import them where they are used"


async def test_a_server_runs_without_what_the_base_install_leaves_out():
    without = "import sys; sys.modules.update(griffe=None); from promptmill.cli.main import main; main()"
    command = ["-c", without, "serve", "--backend", "openai"]
    async with Client(StdioServerParameters(command=sys.executable, args=command)) as client:
        assert (await client.list_tools()).tools
        result = await client.call_tool("generate", {"prompt_ls": []})

    assert result.structured_content == {"ans_ls": []}


def test_importing_prints_nothing():
    code = "import promptmill.server, promptmill.server.process, promptmill.cli.generate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("module", sorted(module for module in MODULES if _room(module) not in {"server", "compat"}))
def test_the_names_of_the_wire_live_and_die_in_the_server(module):
    text = MODULES[module].read_text(encoding="utf-8")
    wire = set(re.findall(r"prompt_ls|ans_ls|multimodal_path", text))
    # the shell prints the same JSON as the server sends, for programs that read either
    assert wire <= ({"ans_ls"} if module == "cli.generate" else set())


def _has_no_options(module: str) -> bool:
    """Return whether `module` neither has a command line of its own nor makes commands."""
    return module not in {"compat.ultrarag", "system.installation"} and _room(module) != "cli"


@pytest.mark.parametrize("module", sorted(filter(_has_no_options, MODULES)))
def test_only_the_command_line_names_its_options(module):
    """It replaces names of arguments and keys by its options, see `core.errors.Named`. Whole commands may be named."""
    text = re.sub(r"`(promptmill|pip|optimum-cli) [^`]*`", "", MODULES[module].read_text(encoding="utf-8"))
    found = re.findall(r"(?<!-)--[a-z][a-z-]*", text)
    assert not found


def test_names_under_servers_hide_no_importable_module():
    names = {path.stem for path in (ROOT / "servers").rglob("*.py")}
    names |= {path.name for path in (ROOT / "servers").rglob("*") if path.is_dir()} - {"src"}
    dependencies = {
        name for names_of in importlib.metadata.packages_distributions().items() for name in names_of[:1]
    } - {"src", "servers"}
    assert not names & set(sys.stdlib_module_names)
    assert not names & dependencies


def test_no_file_is_called_by_what_it_is_not():
    names = {part for module in MODULES for part in module.split(".")}
    assert not names & {"utils", "util", "helpers", "common", "misc", "base", "manager"}


def test_the_page_about_the_house_names_every_package_from_the_top_floor_to_the_ground():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    rooms = {module.split(".", maxsplit=1)[0] for module in MODULES if module} - {"__main__"}
    assert set(listed) == rooms
    assert [_floor(room) for room in listed] == sorted(_floor(room) for room in listed)


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_for_builders_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([\w/.]+/[\w.]*)`", text) if not name.startswith("scripts/test ")}
    missing = {name for name in named if not any((base / name).exists() for base in (ROOT, SOURCE))}
    assert not missing
