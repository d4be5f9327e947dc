"""The launch path of pipelines: their Python starts `generation.py`, ours answers; and the tool `build`."""

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from fakes import KEY
from piped import Piped
from promptmill.features.ultrarag import launch
from replies import answer, by_prompt, hang
from sure import sure
from waiting import PATIENCE_S, eventually

ROOT = Path(__file__).parents[3]
LAUNCHER = ROOT / "servers" / "generation" / "src" / "generation.py"
pytestmark = [pytest.mark.stdio, pytest.mark.thorough]

# As the server base of UltraRAG 0.3.0 writes it for its own generation server.
BUILT = """\
path: servers/generation/src/generation.py
parameter: servers/generation/parameter.yaml
tools:
  generation_init:
    input:
      backend_configs: $backend_configs
      sampling_params: $sampling_params
      extra_params: $extra_params
      backend: $backend
  generate:
    input:
      prompt_ls: prompt_ls
      system_prompt: $system_prompt
    output:
    - ans_ls
  multimodal_generate:
    input:
      multimodal_path: multimodal_path
      prompt_ls: prompt_ls
      system_prompt: $system_prompt
      image_tag: $image_tag
    output:
    - ans_ls
  multiturn_generate:
    input:
      messages: messages
      system_prompt: $system_prompt
    output:
    - ans_ls
  vllm_shutdown:
    input: {}
prompts: {}
"""


@pytest.fixture(scope="module")
def foreign_python(tmp_path_factory):
    """A Python that has no promptmill."""
    folder = tmp_path_factory.mktemp("foreign")
    venv.create(folder, with_pip=False)
    return next(found for found in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if found.exists())


@pytest.fixture
def checkout(tmp_path, upstream, monkeypatch):
    """A pipeline's working directory, with modules in it that would break us if they were imported."""
    folder = tmp_path / "checkout"
    source = folder / "servers" / "generation" / "src"
    source.mkdir(parents=True)
    shutil.copy(LAUNCHER, source)
    block = {"model_name": "m", "base_url": upstream.url, "api_key": KEY}
    whole = {
        "backend": "openai",
        "backend_configs": {"openai": block},
        "sampling_params": {"max_tokens": 8},
        "extra_params": {},
        "system_prompt": "",
        "image_tag": None,
    }
    (folder / "servers" / "generation" / "parameter.yaml").write_text(yaml.safe_dump(whole))
    (folder / "promptmill.py").write_text("raise SystemExit('imported from the working directory')")
    (folder / "yaml.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(folder)
    return folder


def _started(python, **environ):
    poison = {"PYTHONPATH": str(Path.cwd()), "VIRTUAL_ENV": "/nowhere", "PYTHONSTARTUP": "/nowhere"}
    chosen = {"PROMPTMILL_PYTHON": sys.executable}
    return Piped(None, command=[str(python), "servers/generation/src/generation.py"], environ=poison | chosen | environ)


def test_another_python_starts_it_and_ours_answers(checkout, foreign_python, upstream):
    with _started(foreign_python) as server:
        server.initialize()
        assert server.answers("hi") == ["echo: hi"]
        assert upstream.seen[0].headers["authorization"] == f"Bearer {KEY}", "the configuration is the pipeline's"
        server.end("EOF")
        assert server.process.wait(PATIENCE_S) == 0


def test_the_keys_of_the_pipelines_environment_reach_an_endpoint_that_only_its_call_names(
    checkout, foreign_python, upstream
):
    (checkout / "servers" / "generation" / "parameter.yaml").write_text("backend: vllm\n")
    with _started(foreign_python, LLM_API_KEY="key-of-the-pipeline") as server:
        server.initialize()
        configs = {"openai": {"model_name": "m", "base_url": upstream.url}, "vllm": {"gpu_ids": "2,3"}}
        server.result(server.call("generation_init", backend_configs=configs, sampling_params={}, backend="openai"))
        assert server.answers("hi") == ["echo: hi"]
        assert upstream.seen[0].headers["authorization"] == "Bearer key-of-the-pipeline"


def test_response_format_is_passed_on_once_and_the_text_comes_back_as_it_is(checkout, foreign_python, upstream):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    texts = ["Paris.", "", '{"city": ', '```json\n{"city": "Paris"}\n```', '{"town": "Paris"}']
    upstream.reply = by_prompt({str(number): answer(text) for number, text in enumerate(texts)})
    configs = {"openai": {"model_name": "m", "base_url": upstream.url}}
    with _started(foreign_python) as server:
        server.initialize()
        init = {"backend_configs": configs, "sampling_params": {"response_format": wanted}, "backend": "openai"}
        server.result(server.call("generation_init", **init))
        assert server.answers(*map(str, range(len(texts)))) == texts
    assert len(upstream.seen) == len(texts)
    assert all(seen.json["response_format"] == wanted for seen in upstream.seen)


def test_the_backend_litellm_is_the_openai_backend(checkout, foreign_python, upstream):
    block = {"model_name": "openai/m", "base_url": upstream.url, "api_key": KEY, "drop_params": True}
    file = checkout / "servers" / "generation" / "parameter.yaml"
    file.write_text(yaml.safe_dump({"backend": "litellm", "backend_configs": {"litellm": block, "openai": {}}}))
    with _started(foreign_python) as server:
        server.initialize()
        assert server.answers("hi") == ["echo: hi"]
        configs = {"litellm": {**block, "model_name": "openai/n"}}
        server.result(server.call("generation_init", backend_configs=configs, sampling_params={}, backend="litellm"))
        assert server.answers("ho") == ["echo: ho"]
        wrong = server.result(server.call("generation_init", backend_configs={}, sampling_params={}, backend="litellm"))
        assert "backend_configs.litellm.model_name" in wrong["content"][0]["text"]
        assert "left out" not in server.said()
    assert [seen.json["model"] for seen in upstream.seen] == ["m", "n"]
    assert upstream.seen[1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_the_process_that_the_client_started_is_the_server(checkout, foreign_python, upstream):
    upstream.reply = hang()
    with _started(foreign_python) as server:
        server.initialize()
        server.call("generate", prompt_ls=["x"])
        eventually(lambda: upstream.in_flight)
        server.end("SIGTERM")
        assert server.process.wait(PATIENCE_S) == 143
        eventually(lambda: not upstream.in_flight)


def test_the_interpreter_that_was_written_into_it_counts_too(checkout, foreign_python):
    launcher = checkout / "servers" / "generation" / "src" / "generation.py"
    code = launcher.read_text(encoding="utf-8")
    launcher.write_text(code.replace('INTERPRETER = ""', f"INTERPRETER = {sys.executable!r}"), encoding="utf-8")
    with _started(foreign_python, PROMPTMILL_PYTHON="") as server:
        server.initialize()
        assert server.answers("hi") == ["echo: hi"]


def test_without_both_it_is_its_own_interpreter(checkout, monkeypatch):
    (checkout / "promptmill.py").unlink()
    (checkout / "yaml.py").unlink()
    with _started(sys.executable, PROMPTMILL_PYTHON="", PYTHONPATH="") as server:
        server.initialize()
        assert server.answers("hi") == ["echo: hi"]


@pytest.mark.skipif(sys.platform == "win32", reason="environments have other folders there")
@pytest.mark.parametrize("environment", [".venv", "."])
def test_without_both_an_environment_around_it_that_has_promptmill_counts(checkout, foreign_python, environment):
    """As `mcp install` starts it: by a Python without promptmill, with no variable."""
    programs = checkout / environment / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    (checkout / environment / "pyvenv.cfg").write_text("")
    with _started(foreign_python, PROMPTMILL_PYTHON="", PYTHONPATH="") as server:
        server.process.wait(PATIENCE_S)
        assert "has no promptmill" in server.said(), "an environment without promptmill does not count"
    (programs / "promptmill").write_text("")
    with _started(foreign_python, PROMPTMILL_PYTHON="") as server:
        server.initialize()
        assert server.answers("hi") == ["echo: hi"]


async def test_the_server_object_of_the_launcher_lists_the_tools_of_the_server():
    """As `fastmcp inspect` asks for them."""
    spec = sure(importlib.util.spec_from_file_location("launcher", LAUNCHER))
    launcher = importlib.util.module_from_spec(spec)
    sure(spec.loader).exec_module(launcher)
    async with Client(launcher.mcp) as client:
        tools = {tool.name: tool for tool in await client.list_tools()}
    assert {"generation_init", "generate", "bulk_generate"} <= set(tools)
    assert "build" not in tools
    assert list(tools["generate"].input_schema["properties"])[:2] == ["prompt_ls", "system_prompt"]


@pytest.mark.parametrize(
    ("named", "said"),
    [("", "has no promptmill"), ("/nowhere/python", "names /nowhere/python, which is not there")],
)
def test_it_says_what_to_do_when_promptmill_cannot_be_found(checkout, foreign_python, named, said):
    environ = {**os.environ, "PROMPTMILL_PYTHON": named}
    command = [foreign_python, "servers/generation/src/generation.py"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "promptmill install ultrarag CHECKOUT" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_launcher_needs_only_the_standard_library_of_python_3_8():
    tree = ast.parse(LAUNCHER.read_text(encoding="utf-8"), feature_version=(3, 8))
    parts = [node for node in tree.body if getattr(node, "name", "") != "__getattr__"]  # only the SDK's commands ask it
    nodes = [node for part in parts for node in ast.walk(part)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)


def test_where_there_is_no_exec_a_child_has_our_streams_and_its_exit_code_is_ours(monkeypatch, capfd):
    spec = sure(importlib.util.spec_from_file_location("launcher", LAUNCHER))
    launcher = importlib.util.module_from_spec(spec)
    sure(spec.loader).exec_module(launcher)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # it leaves Ctrl-C to the child
    tied = []
    monkeypatch.setattr(launcher, "tie", tied.append)  # Windows' own calls; elsewhere there is exec
    code = "import sys, os; print(os.environ['NAME']); sys.exit(7)"
    assert launcher.run_as_child([sys.executable, "-c", code], {**os.environ, "NAME": "mine"}) == 7
    assert capfd.readouterr().out.strip() == "mine"
    assert len(tied) == 1


@pytest.mark.thorough
def test_a_wrong_parameter_file_ends_it_with_the_key_and_strange_keys_do_not(checkout, foreign_python):
    file = checkout / "servers" / "generation" / "parameter.yaml"
    file.write_text(file.read_text() + "my_prompt: Be brief.\n")
    with _started(foreign_python) as server:
        server.initialize()
        assert server.answers("hi") == ["echo: hi"]
        assert "my_prompt" in server.said()
    file.write_text(file.read_text().replace("model_name:", "concurency: 8\n    model_name:"))
    with _started(foreign_python) as server:
        server.initialize()
        assert server.answers("hi") == ["echo: hi"]
        assert "did you mean concurrency? It was left out." in server.said()
    file.write_text("backend: openai\nbackend_configs: {openai: {concurrency: many}}\n")
    with _started(foreign_python) as server:
        assert server.process.wait(PATIENCE_S) == 2
        assert "backend_configs.openai.concurrency" in server.said()


def test_a_folder_without_a_parameter_file_takes_what_promptmill_finds_elsewhere(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text("backend: openai\n")
    monkeypatch.setenv("PROMPTMILL_CONFIG", str(elsewhere))
    assert launch._configuration_in(tmp_path).origin == str(elsewhere)


def test_its_own_parameter_file_goes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTMILL_CONFIG", str(tmp_path / "nowhere.yaml"))
    (tmp_path / "parameter.yaml").write_text("backend: openai\n")
    found = launch._configuration_in(tmp_path)
    assert (found.config.backend, found.config.trust_client) == ("openai", True)


def test_a_key_that_occurs_twice_is_a_warning_and_its_last_value_counts(tmp_path, caplog):
    (tmp_path / "parameter.yaml").write_text("backend: vllm\nbackend: openai\napi_key: a\napi_key: b\n")
    assert launch._configuration_in(tmp_path).config.backend == "openai"
    assert "line 2: the key backend occurs twice; its last value is used." in caplog.text
    assert "line 4: the key api_key occurs twice" in caplog.text


def test_the_file_may_name_a_provider_as_its_backend(tmp_path):
    (tmp_path / "parameter.yaml").write_text("backend: gemini\nbackend_configs: {gemini: {model_name: m}}\n")
    config = launch._configuration_in(tmp_path).config
    assert (config.backend, config.settings.backend_configs.openai.provider) == ("openai", "google")


# build


@pytest.fixture
def built(checkout, foreign_python):
    """Call `build` of a server, which then ends; return its result and the file that it wrote."""

    def build(file="servers/generation/parameter.yaml"):
        with _started(foreign_python) as server:
            server.initialize()
            result = server.result(server.call("build", parameter_file=file))
        written = Path(file).with_name("server.yaml")
        return result, written.read_text(encoding="utf-8") if written.exists() else None

    return build


def test_build_writes_what_the_pipelines_own_server_would(built):
    result, text = built()
    assert result["content"] == []
    assert not result["isError"]
    assert text == BUILT


def test_a_key_that_the_parameter_file_lacks_is_a_variable_of_the_pipeline(built, checkout):
    file = checkout / "servers" / "generation" / "parameter.yaml"
    file.write_text("backend: openai\npath: servers/generation/src/generation.py\n")
    tools = yaml.safe_load(built()[1])["tools"]
    assert tools["generation_init"]["input"]["backend"] == "$backend"
    assert tools["generation_init"]["input"]["extra_params"] == "extra_params"
    assert tools["multimodal_generate"]["input"]["image_tag"] == "image_tag"


@pytest.mark.parametrize("file", ["servers/nowhere/parameter.yaml", "servers/parameter.yaml"])
def test_build_of_no_server_is_an_error_and_writes_nothing(built, file):
    result, text = built(file)
    assert result["isError"]
    assert "there is no " in result["content"][0]["text"]
    assert text is None


async def test_results_are_described_so_that_a_pipelines_client_reads_a_dict(checkout, foreign_python):
    poison = {"PROMPTMILL_PYTHON": sys.executable, "PATH": os.environ["PATH"]}
    transport = StdioTransport(
        str(foreign_python), ["servers/generation/src/generation.py"], env=poison, keep_alive=False
    )

    async with Client(transport) as client:
        result = await client.call_tool("generate", {"prompt_ls": ["hi"]})
        await client.call_tool("vllm_shutdown")
    assert result.data == {"ans_ls": ["echo: hi"]}


def test_build_exists_on_this_launch_path_only(tmp_path, upstream):
    file = tmp_path / "promptmill.yaml"
    file.write_text(yaml.safe_dump({"backend": "openai", "backend_configs": {"openai": {"base_url": upstream.url}}}))
    with Piped(file) as server:
        server.initialize()
        assert "build" not in {tool["name"] for tool in server.result(server.request("tools/list"))["tools"]}
