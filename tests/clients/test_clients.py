"""Clients that people have, of the versions pinned beside this file, each in a process of its own over real stdio."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from replies import answer

KEY = "key-of-a-desktop-user"
DRIVERS = Path(__file__).parent / "drivers"
LAUNCHER = Path(__file__).parents[2] / "servers" / "generation" / "src" / "generation.py"
pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

TOOLS = {"generation_init", "generate", "multimodal_generate", "multiturn_generate", "vllm_shutdown"}
REASON = "answered 400: no such thing"


def _run(command, environ, *, code=0, patience_s=90, **options):
    given = [str(part) for part in command]
    done = subprocess.run(
        given, env=environ, capture_output=True, text=True, timeout=patience_s, check=False, **options
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def _driven(python, driver, server, environ):
    """Run a driver and return what it met."""
    done = _run([python, DRIVERS / f"{driver}.py", *server], environ)
    return json.loads(done.stdout)


def _checked(found, upstream, expected=TOOLS):
    """Check what is true of every client."""
    tools = {tool["name"]: tool for tool in found["tools"]}
    assert set(tools) >= expected
    assert list(tools["generate"]["inputSchema"]["properties"])[:2] == ["prompt_ls", "system_prompt"]
    assert found["gave_up"]
    upstream_saw = [request.prompt for request in upstream.seen]
    assert upstream_saw[-1] == "hi again", "the session lived on after the client had given up a call"


@pytest.fixture
def own():
    """The Python of this project, with the clients of the MCP SDK's 2.x line."""
    return Path(sys.executable)


@pytest.mark.parametrize(
    ("line", "driver", "package", "version"),
    [
        ("sdk1", "sdk", "mcp", "1."),
        ("own", "sdk", "mcp", "2."),
        ("own", "sdk2_client", "mcp", "2."),
        ("sdk1", "fastmcp_client", "fastmcp", "3."),
        ("own", "fastmcp_client", "fastmcp", "4."),
    ],
)
def test_a_session_of_an_sdk_gets_answers_and_errors(request, line, driver, package, version, server, calm, upstream):
    found = _driven(request.getfixturevalue(line), driver, server, calm)
    assert found["version"].startswith(version)
    _checked(found, upstream)
    assert found["init"]["content"] == []
    assert not found["init"]["isError"]
    partly = found["partly"]
    assert not partly["isError"]
    assert partly["structuredContent"]["ans_ls"] == ["echo: hi", ""]
    assert [entry["index"] for entry in partly["structuredContent"]["errors"]] == [1]
    assert json.loads(partly["content"][0]["text"]) == partly["structuredContent"]
    assert found["progress"][-1] == [2, 2]
    failed = found["failed"]
    assert failed["isError"]
    assert REASON in failed["content"][0]["text"]
    assert failed["structuredContent"]["ans_ls"] == [""]
    assert found["wrong"]["isError"]
    assert "prompt_ls is missing" in found["wrong"]["content"][0]["text"]
    assert found["after"]["structuredContent"] == {"ans_ls": ["echo: hi again"]}


def test_langchain_gets_answers_and_errors(sdk1, server, calm, upstream):
    found = _driven(sdk1, "langchain_adapter", server, calm)
    _checked(found, upstream)
    assert found["partly"]["artifact"]["structured_content"]["ans_ls"] == ["echo: hi", ""]
    assert found["failed"]["status"] == found["wrong"]["status"] == "error"
    assert REASON in found["failed"]["content"][0]["text"]
    assert json.loads(found["after"]["content"][0]["text"]) == {"ans_ls": ["echo: hi again"]}


def test_pydantic_ai_gets_answers_and_errors(sdk1, server, calm, upstream):
    found = _driven(sdk1, "pydantic_ai_agent", server, calm)
    _checked(found, upstream)
    when = r"a folder, or more prompts: `bulk_generate`"
    assert re.search(when, found["instructions"]), "its model reads when to use each tool"
    assert found["partly"]["ans_ls"] == ["echo: hi", ""]
    assert REASON in found["failed"]
    assert "prompt_ls is missing" in found["wrong"]
    assert found["after"] == {"ans_ls": ["echo: hi again"]}


@pytest.mark.parametrize(
    ("line", "framework"),
    [("agents", "openai_agents"), ("agents", "google_adk"), ("llama", "llama_index"), ("sdk1", "mcp_use")],
)
def test_a_framework_for_agents_gets_answers_and_errors(request, line, framework, server, calm):
    python = request.getfixturevalue(line)
    quiet = calm | {"MCP_USE_ANONYMIZED_TELEMETRY": "false", "OTEL_SDK_DISABLED": "true"}
    said = _run([python, DRIVERS / "agent_frameworks.py", framework, *server], quiet).stdout
    found = json.loads(said.splitlines()[-1])  # some log to stdout
    assert set(found["tools"]) >= TOOLS
    assert "echo: hi" in found["partly"]
    assert "bad_request" in found["partly"], "what failed is said beside what was answered"
    assert REASON in found["failed"]


@pytest.mark.parametrize("starts", [20])
def test_every_start_by_the_vercel_ai_sdk_succeeds(npm, server, calm, starts):
    """It asks `server/discover`, gives up after a second, and then sends `initialize` on the same pipe."""
    driver = [shutil.which("node"), DRIVERS / "ai_sdk.mjs", npm.parent.parent, starts]
    met = json.loads(_run([*driver, *server], calm, patience_s=400).stdout)
    assert [found.get("error") for found in met] == [None] * starts
    assert all(set(found["tools"]) >= TOOLS for found in met)
    assert [found["answers"] for found in met] == [["echo: hi"]] * starts


def test_the_vercel_ai_sdk_is_served_over_http(npm, over_http, calm):
    driver = [shutil.which("node"), DRIVERS / "ai_sdk.mjs", npm.parent.parent, 2]
    met = json.loads(_run([*driver, over_http.url], calm).stdout)
    assert [found.get("error") for found in met] == [None, None]
    assert all(set(found["tools"]) >= {"generate", "multimodal_generate", "multiturn_generate"} for found in met)
    assert [found["answers"] for found in met] == [["echo: hi"]] * 2


@pytest.mark.parametrize("line", [1, 2])
@pytest.mark.parametrize(("way", "sizes"), [("server", (600, 1200, 3000)), ("over_http", (600, 2000))])
def test_results_of_many_megabytes_reach_typescripts_sdk(request, npm, calm, upstream, line, way, sizes):
    """Over stdio it ends a session at a message of 10 MiB; each prompt's answer has 10,000 characters."""
    server = request.getfixturevalue(way)
    upstream.reply = answer("x" * 10_000)
    driver = [shutil.which("node"), DRIVERS / "ts_sdk.mjs", npm.parent.parent, line, ",".join(map(str, sizes))]
    found = json.loads(_run([*driver, *(server if way == "server" else [server.url])], calm, patience_s=200).stdout)
    assert [met["characters"] for met in found["sizes"]] == [10_000 * size for size in sizes]
    assert [met["length"] for met in found["sizes"]] == list(sizes)
    last = [size - 1 if way == "server" and size * 10_000 > 9 << 20 else None for size in sizes]
    assert [met.get("last") for met in found["sizes"]] == last
    assert found["after"] == {"ans_ls": ["x" * 10_000]}, "the session lived on"
    assert len(upstream.seen) == sum(sizes) + 1, "nothing is paid for twice"


def test_fastmcps_extension_for_tasks_follows_a_large_call(agents, server, calm, tmp_path):
    state = tmp_path / "state"
    found = json.loads(
        _run([agents, DRIVERS / "fastmcp_tasks_client.py", *server], calm | {"PROMPTMILL_STATE": str(state)}).stdout
    )
    assert len(list((state / "jobs").iterdir())) == 2, "the two large calls were tasks"
    assert found["large"]["ans_ls"] == ["echo: hi"] * 119 + [""]
    assert [entry["index"] for entry in found["large"]["errors"]] == [119]
    assert found["failed"]["error"]
    assert REASON in found["failed"]["said"]
    assert found["small"]["ans_ls"] == ["echo: hi"]


@pytest.mark.parametrize("way", ["server", "over_http"])
def test_typescripts_sdk_follows_tasks_of_2025_11_25(request, npm, calm, way):
    server = request.getfixturevalue(way)
    driver = [shutil.which("node"), DRIVERS / "old_tasks.mjs", npm.parent.parent]
    found = json.loads(_run([*driver, *(server if way == "server" else [server.url])], calm).stdout)
    assert found["answered"]["taskCreated"]["status"] == "working"
    assert found["answered"]["taskStatus"]["statusMessage"] == "1 of 2 prompts answered, 1 failed"
    assert found["answered"]["result"]["structuredContent"]["ans_ls"] == ["echo: hi", ""]
    assert found["failed"]["result"]["isError"]
    assert REASON in found["failed"]["result"]["content"][0]["text"]
    assert "prompt_ls is missing" in found["wrong"]["error"]
    assert found["cancelled"]["taskStatus"]["status"] == "cancelled"


# Command lines


@pytest.mark.parametrize("line", ["sdk1", "own"])
def test_the_command_line_of_fastmcp_lists_and_calls(request, line, server, calm):
    python = request.getfixturevalue(line)
    fastmcp, command = python.with_name("fastmcp"), shlex.join(server)
    listed = json.loads(_run([fastmcp, "list", "--command", command, "--json"], calm).stdout)
    assert {tool["name"] for tool in listed["tools"]} >= TOOLS
    call = [fastmcp, "call", "--command", command, "--target", "generate", "--input-json"]
    result = json.loads(_run([*call, '{"prompt_ls": ["hi", "bad"]}', "--json"], calm).stdout)
    assert result["structured_content"]["ans_ls"] == ["echo: hi", ""]
    failed = _run([*call, '{"prompt_ls": ["bad"]}'], calm, code=1)
    assert REASON in failed.stdout + failed.stderr


def test_the_inspector_lists_and_calls_on_the_command_line(npm, server, calm):
    inspector = [npm / "mcp-inspector", "--cli", "--method"]
    listed = _run([*inspector, "tools/list", "--strict", "--", *server], calm)  # strict: schemas that any client reads
    assert {tool["name"] for tool in json.loads(listed.stdout)["tools"]} >= TOOLS
    call = [*inspector, "tools/call", "--tool-name", "generate", "--tool-arg"]
    result = json.loads(_run([*call, 'prompt_ls=["hi", "bad"]', "--", *server], calm).stdout)
    assert result["structuredContent"]["ans_ls"] == ["echo: hi", ""]
    failed = json.loads(_run([*call, 'prompt_ls=["bad"]', "--", *server], calm, code=5).stdout)
    assert failed["isError"]
    assert REASON in failed["content"][0]["text"]


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_finds_and_verifies_the_skill(npm, server, calm, era):
    """`--verify` runs its checks of SEP-2640, and exits with 7 where one fails."""
    listing = ["--method", "skills/list", "--verify", "--require-digests", "--protocol-era", era]
    found = json.loads(_run([npm / "mcp-inspector", "--cli", *listing, "--", *server], calm).stdout)
    assert (found["name"], found["outcome"]) == ("promptmill", "verified")


@pytest.mark.parametrize("line", ["sdk1", "own"])
@pytest.mark.parametrize("command", ["mcp", "fastmcp"])
def test_mcp_run_and_fastmcp_run_on_the_launch_file(request, line, command, config, calm, tmp_path):
    python = request.getfixturevalue(line)
    folder = tmp_path / "servers" / "generation" / "src"
    folder.mkdir(parents=True)
    launcher = folder / "generation.py"
    launcher.write_bytes(LAUNCHER.read_bytes())
    (folder.parent / "parameter.yaml").write_bytes(config.read_bytes())
    start = [python.with_name(command), "run", launcher, *(["--transport", "stdio"] if command == "fastmcp" else [])]
    found = _driven(python, "sdk", start, calm | {"PROMPTMILL_PYTHON": sys.executable})
    assert found["after"]["structuredContent"] == {"ans_ls": ["echo: hi again"]}


def test_fastmcp_inspect_on_the_launch_file_shows_the_tools(sdk1, calm, tmp_path):
    command = [sdk1.with_name("fastmcp"), "inspect", LAUNCHER, "--format", "mcp", "-o", tmp_path / "found.json"]
    _run(command, calm | {"PROMPTMILL_PYTHON": sys.executable})
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert {tool["name"] for tool in found["tools"]} >= TOOLS


@pytest.mark.skipif(sys.platform != "linux", reason="Claude Desktop's folder is elsewhere")
@pytest.mark.parametrize("line", ["sdk1", "own"])
async def test_the_entry_of_mcp_install_starts_without_a_variable(request, line, online, tmp_path):
    """It starts the file in an environment of uv's own, which has no promptmill."""
    (tmp_path / "Claude").mkdir()
    environ = online | {"XDG_CONFIG_HOME": str(tmp_path)}
    _run([request.getfixturevalue(line).with_name("mcp"), "install", LAUNCHER, "--name", "mill"], environ)
    file = tmp_path / "Claude" / "claude_desktop_config.json"
    entry = json.loads(file.read_text(encoding="utf-8"))["mcpServers"]["mill"]
    start = StdioTransport(entry["command"], entry["args"], env=environ, cwd=str(tmp_path), keep_alive=False)
    async with Client(start, init_timeout=300) as client:
        assert {tool.name for tool in await client.list_tools()} >= TOOLS


def test_a_pipelines_client_builds_and_runs_in_its_own_environment(sdk1, config, calm, tmp_path, monkeypatch, upstream):
    folder = Path("servers", "generation")
    (tmp_path / folder / "src").mkdir(parents=True)
    (tmp_path / folder / "src" / "generation.py").write_bytes(LAUNCHER.read_bytes())
    parameters = yaml.safe_load(config.read_text()) | {"sampling_params": {"max_tokens": 8}, "extra_params": {"x": 1}}
    (tmp_path / folder / "parameter.yaml").write_text(
        yaml.safe_dump(parameters | {"system_prompt": "", "image_tag": None})
    )
    path = os.pathsep.join([str(sdk1.parent), calm["PATH"]])  # its client starts plain `python`
    environ = calm | {"PATH": path, "PROMPTMILL_PYTHON": sys.executable}
    found = json.loads(_run([sdk1, DRIVERS / "pipeline.py", folder], environ, cwd=tmp_path).stdout)
    assert found["outputs"] == ["ans_ls"]
    assert found["data"] == found["text"] == {"ans_ls": ["echo: Answer: one", "echo: Answer: two"]}
    assert found["chat"] == {"ans_ls": ["echo: hello"]}
    assert (upstream.seen[0].json["max_tokens"], upstream.seen[0].json["x"]) == (8, 1)


# The desktop bundle


def _substituted(value, variables):
    """Fill `${…}` in, as desktop programs do."""
    if isinstance(value, dict):
        return {key: _substituted(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_substituted(inner, variables) for inner in value]
    return re.sub(r"\$\{([^}]+)\}", lambda found: variables[found[1]], value)


@pytest.mark.parametrize("key", [KEY, ""])
def test_the_desktop_bundle_starts_as_its_manifest_says(bundle, sdk1, uv, config, upstream, calm, tmp_path, key):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    typed = {"base_url": upstream.url, "model": "m", "api_key": key, "folder": str(tmp_path)}
    assert typed.keys() == manifest["user_config"].keys()
    variables = {f"user_config.{name}": value for name, value in typed.items()} | {"__dirname": str(bundle)}
    start = _substituted(manifest["server"]["mcp_config"], variables)
    environ = calm | start["env"] | {"UV_OFFLINE": "1"}
    found = _driven(sdk1, "sdk", [uv.with_name(start["command"]), *start["args"]], environ)
    _checked(found, upstream, TOOLS - {"generation_init", "vllm_shutdown"})  # locked: what its user typed counts
    assert found["after"]["structuredContent"] == {"ans_ls": ["echo: hi again"]}
    assert upstream.seen[-1].headers.get("authorization") == (f"Bearer {key}" if key else None)
    assert [tool["name"] for tool in manifest["tools"]] == [tool["name"] for tool in found["tools"]]


def test_the_key_of_a_desktop_user_is_marked_sensitive_and_stands_on_no_command_line(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["user_config"]["api_key"]["sensitive"]
    assert "api_key" not in " ".join(manifest["server"]["mcp_config"]["args"])
