"""Agents for the terminal, from npm: each starts promptmill and has a fake model call `generate` in its first turn."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fake_models import Api, ChatApi, FakeModel, GeminiApi, ResponsesApi
from processtable import family
from served import Served
from server_process import written

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]

PROMPTS = ["one", "two"]
CLOSING = "These were the closing words."


@dataclass(frozen=True)
class Agent:
    """An agent for the terminal: how it is set up in a home folder of its own before a model at a URL."""

    name: str
    api: Api
    command: Sequence[str]
    """Asks the model something, and ends."""
    settings: Callable[[str], tuple[str, str]]
    """Where its settings lie below the home folder, and what they hold."""
    installed_as: str | None = None
    """Its name for `promptmill install`; None where its settings name the server themselves."""
    environ: Callable[[str], dict[str, str]] = field(default=lambda url: {})


def _codex(url: str) -> tuple[str, str]:
    provider = f'[model_providers.fake]\nname = "fake"\nbase_url = "{url}"\nwire_api = "responses"\n'
    return (
        ".codex/config.toml",
        f'model = "m"\nmodel_provider = "fake"\nweb_search = "disabled"\n\n[analytics]\nenabled = false\n\n{provider}',
    )


def _gemini(url: str) -> tuple[str, str]:
    chosen = {"security": {"auth": {"selectedType": "gemini-api-key"}}, "privacy": {"usageStatisticsEnabled": False}}
    return ".gemini/settings.json", json.dumps(chosen)


def _opencode(url: str) -> tuple[str, str]:
    models = {"m": {"name": "m", "tool_call": True, "limit": {"context": 100_000, "output": 1_000}}}
    options = {"baseURL": url, "apiKey": "none"}
    fake = {"npm": "@ai-sdk/openai-compatible", "name": "fake", "options": options, "models": models}
    chosen = {"provider": {"fake": fake}, "model": "fake/m", "small_model": "fake/m"}
    return "work/opencode.json", json.dumps(chosen)


AGENTS = [
    Agent(
        "codex",
        ResponsesApi(),
        ["codex", "exec", "--skip-git-repo-check", "Ask the other model."],
        _codex,
        "codex",
    ),
    Agent(
        "gemini",
        GeminiApi(),
        ["gemini", "-m", "gemini-2.5-flash", "-y", "-p", "Ask the other model."],
        _gemini,
        "gemini-cli",
        lambda url: {
            "GEMINI_API_KEY": "none",
            "GOOGLE_GEMINI_BASE_URL": url.removesuffix("/v1"),
            "GEMINI_CLI_TRUST_WORKSPACE": "true",  # in other folders it starts no servers
        },
    ),
    Agent(
        "opencode",
        ChatApi(),
        ["opencode", "run", "Ask the other model."],
        _opencode,
        environ=lambda url: {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
    ),
]


def _ended(command, environ, folder):
    """Run `command` to its end, and end what it leaves behind."""
    process = subprocess.Popen(
        [str(part) for part in command],
        env=environ | {"PWD": str(folder)},  # as a shell sets it
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        for left in family(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        out, err = process.communicate()
        pytest.fail(f"it did not end:\n{out}{err}")
    assert process.returncode == 0, out + err
    return out


def _asked(agent, url, npm, config, calm):
    """Return what an agent prints that has promptmill's tools, and a model at a URL."""
    home = Path(calm["HOME"])
    work = home / "work"
    work.mkdir()
    where, settings = agent.settings(url)
    (home / where).parent.mkdir(exist_ok=True)
    (home / where).write_text(settings, encoding="utf-8")
    if agent.installed_as:
        install = [sys.executable, "-m", "promptmill", "install", agent.installed_as, "--config", config]
        _ended(install, calm, work)
        if agent.name == "codex":  # `codex exec` waits for no other server, as docs/clients.md says
            text = (home / where).read_text(encoding="utf-8")
            table = "[mcp_servers.promptmill]\n"
            (home / where).write_text(text.replace(table, f"{table}required = true\n"), encoding="utf-8")
    else:
        start = [sys.executable, "-m", "promptmill", "serve", "--config", str(config)]
        ours = {"mcp": {"promptmill": {"type": "local", "command": start, "enabled": True}}}
        (home / where).write_text(json.dumps(json.loads(settings) | ours), encoding="utf-8")
    program, *arguments = agent.command
    return _ended([npm / program, *arguments], calm | agent.environ(url), work)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_an_agent_has_the_tools_in_its_first_turn_and_gives_its_model_the_answers(
    agent, npm, config, calm, upstream, upstreams
):
    at = upstreams()
    model = FakeModel(agent.api, "promptmill[/_]generate$", {"prompt_ls": PROMPTS}, CLOSING)
    model.answers_at(at)
    assert CLOSING in _asked(agent, at.url, npm, config, calm)
    assert sorted(request.prompt for request in upstream.seen) == PROMPTS
    assert len(model.results) == 1
    assert '{"ans_ls":["echo: one","echo: two"]}' in model.results[0]


@pytest.mark.parametrize("agent", [AGENTS[0], AGENTS[2]], ids=lambda agent: agent.name)
def test_an_agent_has_its_model_from_our_server(agent, npm, config, calm, tmp_path, upstream, upstreams):
    at = upstreams()
    model = FakeModel(ChatApi(), "promptmill_+generate$", {"prompt_ls": PROMPTS}, CLOSING)
    model.answers_at(at)
    (tmp_path / "model").mkdir()
    with Served(written(tmp_path / "model", at.url)) as served:
        assert CLOSING in _asked(agent, f"http://127.0.0.1:{served.port}/v1", npm, config, calm)
    assert sorted(request.prompt for request in upstream.seen) == PROMPTS
    assert len(model.results) == 1
    assert '{"ans_ls":["echo: one","echo: two"]}' in model.results[0]
