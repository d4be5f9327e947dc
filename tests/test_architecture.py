"""What an import costs, and which names may stand where. `scripts/check` checks the direction of imports."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from all_features import ALL_FEATURES
from promptmill.core.feature import features
from waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "promptmill"

IN_FEATURES = "promptmill.features."
HEAVY = {"torch", "transformers", "vllm", "aiohttp", "PIL", "pyarrow", "pandas", "numpy", "safetensors", "gguf", "rich"}
HEAVY |= {"openvino", "openvino_genai"}
# Modules that are themselves imported only on load, and those of an engine only in its own process.
AT_HOME = {
    "aiohttp": ("backends.openai.session", "images.fetch"),
    "torch": ("backends.engines.hf", "backends.engines.vllm"),
    "vllm": ("backends.engines.vllm",),
    "transformers": ("backends.engines.hf",),
    "safetensors": ("backends.engines.hf",),
    "gguf": ("backends.engines.hf", "backends.engines.openvino"),
    "openvino": ("backends.engines.openvino", "features.embeddings.local.e5"),
    "openvino_genai": ("backends.engines.openvino",),
    "numpy": ("backends.engines.hf", "backends.engines.openvino", "features.embeddings.local"),
}


def _modules() -> dict[str, Path]:
    """Return `backends.openai.run` → its file, for every module of the package."""
    found = {}
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = _modules()


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _imports(file: Path, *, top_level: bool = False) -> set[str]:
    """Return the dotted names that `file` imports; with `top_level` only what runs when it is imported itself."""
    tree = _tree(file)
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


def _package(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def test_nothing_heavy_is_imported_at_the_top_of_a_file():
    some = re.compile(rf"^\s*(?:from|import) .*\b(?:{'|'.join(HEAVY)})\b", re.MULTILINE)
    heavy = {
        (module, name)
        for module, file in MODULES.items()
        if some.search(file.read_text(encoding="utf-8"))
        for name in {name.partition(".")[0] for name in _imports(file, top_level=True)} & HEAVY
    }
    assert not {(module, name) for module, name in heavy if not module.startswith(AT_HOME.get(name, ()))}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "entry", ["promptmill.server", "promptmill.cli.main", "promptmill.service.service", "promptmill.server.process"]
)
def test_a_fresh_interpreter_imports_nothing_heavy(entry):
    code = f"import sys, {entry}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert not set(loaded.stdout.split()) & (HEAVY - {"rich"}), "fastmcp itself brings rich"
    assert "promptmill" in loaded.stdout.split()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "entry",
    ["promptmill.backends.openai.backend", "promptmill.cluster.worker", "promptmill.backends.engines.host"],
)
def test_our_side_of_a_backend_imports_nothing_heavy(entry):
    code = f"import sys, {entry}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert not set(loaded.stdout.split()) & HEAVY


def test_the_options_of_a_command_are_known_without_a_large_import():
    code = "import sys; from promptmill.cli import main; main.parser_of(['serve', 'bulk']); print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    large = {"asyncio", "fastmcp", "mcp", "mcp_types", "orjson", "pydantic", "rich", "yaml"}
    assert not set(loaded.stdout.split()) & large, "import them where they are used"


@pytest.mark.thorough
async def test_a_server_runs_without_what_the_base_install_leaves_out():
    without = "import sys; sys.modules.update(griffe=None); from promptmill.cli.main import main; main()"
    command = ["-c", without, "serve", "--backend", "openai"]
    async with Client(StdioServerParameters(command=sys.executable, args=command)) as client:
        assert (await client.list_tools()).tools
        result = await client.call_tool("generate", {"prompt_ls": []})

    assert result.structured_content == {"ans_ls": []}


@pytest.mark.thorough
def test_no_files_import_each_other_late_imports_included():
    """Nor do they for the types alone. The package itself has names that it imports at their first use."""
    names = MODULES.keys() - {""}
    after = {
        module: {
            found
            for name in _imports(MODULES[module])
            if (inner := name.removeprefix("promptmill.")) != name
            for found in [inner if inner in names else inner.rpartition(".")[0]]
            if found in names - {module}
        }
        for module in names
    }
    while ends := {module for module, imported in after.items() if not imported}:
        after = {module: imported - ends for module, imported in after.items() if module not in ends}
    assert not after, "each of these imports another one, which imports it or one of them"


@pytest.mark.thorough
def test_jobs_are_started_through_their_door_alone():
    """The other ends are processes: `jobs.run.detached` runs an admitted job, `child_step` validates an order. A
    validation admits the job to find its errors, and puts it back."""
    behind = {f"promptmill.jobs.run.{name}" for name in ("admission", "runner", "validation")}
    importers = {
        module
        for module, file in MODULES.items()
        if any(name in behind or name.rpartition(".")[0] in behind for name in _imports(file))
    }
    assert importers == {"jobs.door", "jobs.manage.child_step", "jobs.run.detached", "jobs.run.validation"}
    assert {module for module, file in MODULES.items() if _makes_orders(file)} == {"jobs.door"}


def _makes_orders(file: Path) -> bool:
    """Return whether a file calls `JobOrder` or `JobOrder.of`."""
    if "JobOrder" not in file.read_text(encoding="utf-8"):
        return False
    made = (node.func for node in ast.walk(_tree(file)) if isinstance(node, ast.Call))
    return bool({"JobOrder", "JobOrder.of"} & {ast.unparse(function) for function in made})


def test_importing_prints_nothing():
    code = "import promptmill.server, promptmill.server.process, promptmill.cli.generate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=PATIENCE_S)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_the_names_of_the_wire_live_and_die_in_the_server():
    texts = {module: file.read_text(encoding="utf-8") for module, file in MODULES.items()}
    users = {module for module, text in texts.items() if re.search(r"prompt_ls|ans_ls|multimodal_path", text)}
    # the shell prints the same JSON as the server sends, for programs that read either
    assert {module for module in users if not module.startswith(("server", "features.ultrarag"))} == {
        "cli.generate",
        "core.wording",  # what people call them
    }


def test_a_feature_imports_only_the_features_that_it_needs():
    for name, feature in features().items():
        own = [file for module, file in MODULES.items() if f"{module}.".startswith(f"features.{name}.")]
        imported = {each.split(".")[2] for file in own for each in _imports(file) if each.startswith(IN_FEATURES)}
        assert imported <= {name, *feature.needs, *feature.uses}


def _members(kind: ast.ClassDef) -> set[str]:
    """Return the names of the public members that a class defines."""
    fields = {
        node.target.id for node in kind.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    fields |= {
        target.id
        for node in kind.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    methods = {node.name for node in kind.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {name for name in fields | methods if not name.startswith("_")}


def _passed_on(tree: ast.Module) -> set[ast.Attribute]:
    """Return the members whose value a function only passes on: it is all that the function returns."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    bodies = [[each for each in node.body if not isinstance(each, ast.Expr | ast.Delete)] for node in functions]
    values = [body[0].value for body in bodies if len(body) == 1 and isinstance(body[0], ast.Return)]
    called = [value.func if isinstance(value, ast.Call) else value for value in values]
    return {value for value in called if isinstance(value, ast.Attribute)}


@functools.cache
def _classes() -> list[tuple[str, ast.ClassDef]]:
    """Return the classes of the package and of the examples, each with its module."""
    files = [*MODULES.items(), *((file.stem, file) for file in (ROOT / "examples").rglob("*.py"))]
    return [(where, node) for where, file in files for node in ast.walk(_tree(file)) if isinstance(node, ast.ClassDef)]


@functools.cache
def _used_by_the_core() -> set[str]:
    """Return the names of the members that the core reads, but for those that it only passes on."""
    used = set[str]()
    for where, file in MODULES.items():
        if not where.startswith("features."):
            tree = _tree(file)
            passed = _passed_on(tree)
            used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node not in passed}
    return used


@pytest.mark.thorough
@pytest.mark.features("labels")
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("jobs.store.order_part", "OrderPart"),
        ("jobs.store.plan", "Plan"),
        ("jobs.store.plan", "PlanWork"),
        ("steps.step", "Step"),
        ("answers.check", "Check"),
    ],
)
def test_a_member_that_a_feature_may_define_is_one_that_the_core_uses(module, name):
    """Or that two of them define. What one feature has, and only others ask for, is a protocol of the one that asks."""
    classes = _classes()
    (base,) = [node for where, node in classes if (where, node.name) == (module, name)]
    kinds = {name}
    for _ in range(3):  # subclasses of subclasses
        kinds |= {node.name for _, node in classes if any(getattr(each, "id", "") in kinds for each in node.bases)}
    defined = Counter(member for where, node in classes if node.name in kinds - {name} for member in _members(node))
    used = _used_by_the_core()
    assert {member for member in _members(base) if defined[member] < 2 and member not in used} == set()


def test_no_code_compares_the_name_of_a_backend():
    """A backend's record has the facts that differ. UltraRAG's parameters name one before there is a record."""
    named = re.compile(r"""\bbackend\b\S* (?:[!=]=|in \{) ?"(?:openai|vllm|hf|openvino)""")
    users = {module for module, file in MODULES.items() if named.search(file.read_text(encoding="utf-8"))}
    assert users <= {"features.ultrarag.parameters"}


def test_only_the_command_line_names_its_options():
    """It replaces names of arguments and keys by its options, see `core.errors.Named`. Whole commands may be named."""
    for module, file in MODULES.items():
        if (
            module in {"features.ultrarag.launch", "system.installation"}
            or "command" in module
            or _package(module) == "cli"
        ):
            continue  # it has a command line of its own, or makes commands
        commands = r"`(promptmill|pip|optimum-cli) [^`]*`|Named\(\"command\", f?\"[^\"]*\""
        text = re.sub(commands, "", file.read_text(encoding="utf-8"))
        assert not re.findall(r"(?<!-)--[a-z][a-z-]*", text), module


def test_names_under_servers_hide_no_importable_module():
    names = {path.stem for path in (ROOT / "servers").rglob("*.py")}
    names |= {path.name for path in (ROOT / "servers").rglob("*") if path.is_dir()} - {"src"}
    dependencies = {
        name for names_of in importlib.metadata.packages_distributions().items() for name in names_of[:1]
    } - {"src", "servers"}
    assert not names & set(sys.stdlib_module_names)
    assert not names & dependencies


def test_a_constant_has_one_value():
    """A second assignment replaces the value for every module that imports the name."""
    for module, file in MODULES.items():
        body = ast.parse(file.read_text(encoding="utf-8")).body
        names = [
            target.id
            for node in body
            for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign)
        ]
        assert len(names) == len({*names}), module


def test_no_file_is_called_by_what_it_is_not():
    names = {part for module in MODULES for part in module.split(".")}
    assert not names & {"utils", "util", "helpers", "common", "misc", "base", "manager"}


def test_the_page_about_the_house_names_every_package_from_the_top_floor_to_the_ground():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    floors = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    packages = [name for floor in floors for name in floor.split(" | ")]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == packages[1:]


def test_the_page_about_the_house_names_every_feature():
    unnamed = {path.parent.name for path in SOURCE.glob("features/*/__init__.py")} - ALL_FEATURES
    assert not unnamed, "docs/architecture.md names every feature"


@pytest.mark.features  # some of the files are theirs
@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_for_builders_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([\w/.]+/[\w.]*)`", text) if not name.startswith("scripts/test ")}
    missing = {name for name in named if not any((base / name).exists() for base in (ROOT, SOURCE))}
    assert not missing


def test_a_public_class_has_a_name_of_its_own():
    places: dict[str, list[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        for name in re.findall(r"^class ([A-Z]\w*)", file.read_text(encoding="utf-8"), re.MULTILINE):
            places.setdefault(name, []).append(file.relative_to(SOURCE).as_posix())
    assert not {name: where for name, where in places.items() if len(where) > 1}
