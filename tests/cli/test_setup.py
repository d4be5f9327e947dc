"""`promptmill init`: what it asks, what it writes, and that it works."""

from __future__ import annotations

import asyncio
import io

import pytest

from promptmill.backends.openai import discovery
from promptmill.cli import main as cli
from promptmill.config.configuration import Configuration
from replies import html
from sure import sure


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Run `init` in an empty folder, `said` on stdin; return exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROMPTMILL_CONFIG", raising=False)

    def run(*arguments: str, said: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        code = cli.main(["init", *arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.mark.thorough
def test_a_server_with_one_model_needs_no_name_for_it(init, tmp_path, upstream):
    code, out, _ = init(said=f"1\n{upstream.url}\n\n")
    assert code == 0
    assert "ok    models: test-model" in out
    assert "    model_name" not in (tmp_path / "parameter.yaml").read_text(encoding="utf-8")


def test_of_several_models_one_is_chosen(init, tmp_path, upstream):
    upstream.models = ["llama3.2:1b", "qwen3:4b"]
    code, out, _ = init(said=f"1\n{upstream.url}\n\n")
    assert code == 0
    assert "It has llama3.2:1b, qwen3:4b" in out
    assert "model_name: llama3.2:1b" in (tmp_path / "parameter.yaml").read_text(encoding="utf-8")


def test_where_nobody_can_choose_a_model_the_models_are_told(init, tmp_path, upstream):
    upstream.models = ["llama3.2:1b", "qwen3:4b"]
    code, _, err = init("--base-url", upstream.url)
    assert code == 2
    assert "--model: it has llama3.2:1b, qwen3:4b" in err
    assert not (tmp_path / "parameter.yaml").exists()


def test_the_only_model_of_a_server_needs_nobody_who_chooses_it(init, tmp_path, upstream):
    code, _, _ = init("--base-url", upstream.url)
    assert code == 0
    assert "    model_name" not in (tmp_path / "parameter.yaml").read_text(encoding="utf-8")


def test_an_address_that_cannot_be_is_told_before_a_file_is_written(init, tmp_path):
    code, _, err = init("--base-url", "http:/127.0.0.1:8000")
    assert code == 2
    assert "did you mean http://127.0.0.1:8000?" in err
    assert not (tmp_path / "parameter.yaml").exists()


@pytest.mark.thorough
def test_three_answers_make_a_file_that_works(init, tmp_path, upstream):
    code, out, _ = init(said=f"1\n{upstream.url}\nqwen3:8b\n")
    assert code == 0
    assert "ok    answer" in out
    assert "promptmill generate" in out, "the next step"
    text = (tmp_path / "parameter.yaml").read_text(encoding="utf-8")
    assert "# the server's address" in text
    block = Configuration.load(tmp_path / "parameter.yaml").config.settings.backend_configs.openai
    assert (block.model_name, list(block.base_url)) == ("qwen3:8b", [upstream.url])
    assert upstream.seen[-1].json["model"] == "qwen3:8b"


@pytest.mark.thorough
def test_an_address_that_is_pasted_answers_the_first_question(init, tmp_path, upstream):
    code, out, _ = init(said=f"{upstream.url}\nqwen3:8b\n")
    assert code == 0, out
    block = Configuration.load(tmp_path / "parameter.yaml").config.settings.backend_configs.openai
    assert (block.model_name, list(block.base_url)) == ("qwen3:8b", [upstream.url])
    assert init(upstream.url, "--model", "m", "-o", "other.yaml")[0] == 0


def test_an_option_answers_its_question(init, upstream):
    code, out, _ = init("--base-url", upstream.url, "--model", "m")
    assert code == 0
    assert "Where" not in out


def test_other_options_are_written_too(init, tmp_path, upstream):
    given = ("--price", "0.1/0.4", "--temperature", "0", "--concurrency", "7", "--set", "max_cost=2")
    strong = ("--set", "models.strong.openai.model_name=large", "--set", "models.strong.price={input: 2, output: 8}")
    code, out, _ = init(upstream.url, "-m", "qwen3:8b", *given, *strong)
    assert code == 0, out
    text = (tmp_path / "parameter.yaml").read_text(encoding="utf-8")
    assert "# max_tokens" in text
    assert "# max_cost" not in text
    settings = Configuration.load(tmp_path / "parameter.yaml").config.settings
    assert settings.prices["qwen3:8b"].input == 0.1
    assert sure(settings.models["strong"].openai).model_name == "large"
    assert (settings.max_cost, settings.sampling_params.temperature) == (2, 0)
    assert settings.backend_configs.openai.concurrency == 7


def test_an_assignment_comes_before_an_answer_and_may_switch_off(init, tmp_path, upstream):
    given = ("--set", "backend_configs.openai.model_name=other", "--set", "cache=false")
    code, _, _ = init(upstream.url, "-m", "qwen3:8b", "--key-env", "MY_KEY", *given)
    assert code == 2, "the variable is not set"
    text = (tmp_path / "parameter.yaml").read_text(encoding="utf-8")
    assert "model_name: other" in text
    assert "api_key_env: MY_KEY" in text
    assert "cache: false" in text


def test_an_option_that_is_wrong_is_told_before_the_file_is_written(init, tmp_path, upstream):
    code, _, err = init(upstream.url, "-m", "qwen3:8b", "--set", "openai.timeout=3")
    assert code == 2
    assert "backend_configs: {openai: …}" in err
    assert not (tmp_path / "parameter.yaml").exists()


def test_a_providers_key_is_named_and_never_written(init, tmp_path, monkeypatch):
    monkeypatch.delenv("MISTRAL_API_KEY", raising=False)
    code, out, _ = init("--set", "backend_configs.openai.base_url=http://127.0.0.1:9", "--set",
                        "backend_configs.openai.patience=0.1", said="2\nmistral\nmistral-small-latest\n")  # fmt: skip
    assert code == 2
    assert "`export MISTRAL_API_KEY=…` gives promptmill your key" in out
    assert "api_key_env: MISTRAL_API_KEY" in (tmp_path / "parameter.yaml").read_text(encoding="utf-8")


def test_providers_are_those_with_a_key_and_azure_is_asked_for_its_address(init, tmp_path):
    _, out, _ = init("--set", "backend_configs.openai.patience=0.1",
                     said="2\nazure\nmy-model\nhttp://127.0.0.1:9\n")  # fmt: skip
    offered = next(line for line in out.splitlines() if "Providers: " in line).partition("Providers: ")[2].split(", ")
    assert {"openai", "azure", "together"} <= set(offered)
    assert not {"vllm", "sglang", "lmstudio"} & set(offered)
    assert "base_url: http://127.0.0.1:9" in (tmp_path / "parameter.yaml").read_text(encoding="utf-8")


def test_a_word_that_is_no_answer_is_asked_for_again(init, upstream):
    code, out, _ = init(said=f"9\n1\n{upstream.url}\nm\n")
    assert code == 0
    assert "Write one of 1, 2, 3." in out


def test_a_file_that_is_there_stays(init, tmp_path):
    (tmp_path / "parameter.yaml").write_text("backend: hf # mine\n")
    code, _, err = init("--base-url", "http://127.0.0.1:9", "--model", "m")
    assert code == 2
    assert "--force" in err
    assert (tmp_path / "parameter.yaml").read_text() == "backend: hf # mine\n"


def test_with_nobody_to_ask_the_option_is_named_and_nothing_is_asked(init, tmp_path):
    code, out, err = init()
    assert (code, out) == (2, "")
    assert "stdin is not a terminal and has no answer; use --base-url, --provider or" in " ".join(err.split())
    assert not (tmp_path / "parameter.yaml").exists()


def test_what_is_wrong_is_said_and_the_way_on(init, upstream):
    upstream.reply = html(404)
    code, out, _ = init("--base-url", upstream.url, "--model", "no # such: model", "-o", "other.yaml")
    assert code == 2
    assert "Then `promptmill models --check --config other.yaml` tries it again." in out


def test_a_file_whose_check_failed_does_not_block_the_next_init_until_it_is_edited(init, tmp_path, upstream):
    file, arguments = tmp_path / "parameter.yaml", ("--base-url", "http://127.0.0.1:9", "--model", "m")
    assert init(*arguments)[0] == 2
    file.write_text(file.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    assert "--force" in init(*arguments)[2]
    assert "# mine" in file.read_text(encoding="utf-8")
    assert init(*arguments, "--force")[0] == 2
    code, _, err = init("--base-url", upstream.url, "--model", "test-model")
    assert (code, err) == (0, "")
    assert "Its check failed" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(("found", "default"), [("server", "1"), ("provider", "2"), ("", "3")])
def test_what_works_is_the_default(init, upstream, monkeypatch, found, default):
    async def around():
        return (upstream.url if found == "server" else "", "mistral" if found == "provider" else "")

    asked = []

    def ask(question, default, option, **_):
        asked.append((question.rpartition("\n")[2], default))
        return default or "m"

    monkeypatch.setattr("promptmill.cli.setup.choosing.around", around)
    monkeypatch.setattr("promptmill.cli.setup._ask", ask)
    monkeypatch.setattr("promptmill.cli.setup.check", lambda *_: 0)
    assert init()[0] == 0
    assert asked[0] == ("1, 2, 3 or an address", default)
    expected = {"1": ("Its address", upstream.url), "2": ("The provider", "mistral"), "3": asked[1]}
    assert asked[1] == expected[default]


def test_a_server_of_this_machine_and_a_key_are_found(upstream):
    configuration = Configuration({"backend": "auto"})
    environ = {"OLLAMA_HOST": upstream.url, "MISTRAL_API_KEY": "k"}
    found = asyncio.run(discovery.around(configuration, environ))
    assert found == (upstream.url, "mistral")
    assert asyncio.run(discovery.around(configuration, {"OLLAMA_HOST": "127.0.0.1:9"})) == ("", "")
