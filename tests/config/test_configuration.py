"""`parameter.yaml` → typed settings: which file, what it may hold, what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest
import yaml
from pydantic import SecretStr

from promptmill.config.assignments import assigned
from promptmill.config.configuration import HTTP_DEFAULTS, Configuration, Overrides
from promptmill.config.parameter_file import FILE_NAME, _Loader, find
from promptmill.config.settings import Settings
from promptmill.core.errors import Code, PromptmillError

ROOT = Path(__file__).parents[2]

# The file of the generation server whose pipelines run here unchanged (docs.ultrarag, generation server).
REFERENCE = """\
# servers/generation/parameter.yaml
backend: vllm # options: vllm, openai
backend_configs:
  vllm:
    model_name_or_path: openbmb/MiniCPM4-8B
    gpu_ids: "2,3"
    gpu_memory_utilization: 0.9
    dtype: auto
    trust_remote_code: true
  openai:
    model_name: MiniCPM4-8B
    base_url: http://localhost:8000/v1
    api_key: "abc"
    concurrency: 8
    retries: 3
    base_delay: 1.0
  hf:
    model_name_or_path: openbmb/MiniCPM4-8B
    gpu_ids: '2,3'
    trust_remote_code: true
    batch_size: 8
sampling_params:
  temperature: 0.7
  top_p: 0.8
  max_tokens: 2048
extra_params:
  chat_template_kwargs:
    enable_thinking: false
system_prompt: ""
image_tag: null
"""


@pytest.fixture
def write(tmp_path):
    def written(content: str | bytes, name: str = FILE_NAME) -> Path:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return written


def _problem(file, *assignments: str, environ: Any = MappingProxyType({})) -> str:
    with pytest.raises(PromptmillError) as caught:
        Configuration.load(file, assignments=assigned(assignments), environ=environ)
    assert caught.value.code is Code.INVALID_CONFIG
    return str(caught.value).removeprefix(f"{file}: ")


# The whole file


def test_a_file_of_the_reference_loads_unchanged(write):
    settings = Configuration.load(write(REFERENCE), environ={}).config.settings
    assert settings.backend == "vllm"
    blocks = settings.backend_configs
    assert (blocks.vllm.gpu_ids, blocks.vllm.gpu_memory_utilization, blocks.vllm.trust_remote_code) == (
        (2, 3),
        0.9,
        True,
    )
    assert (blocks.openai.model_name, blocks.openai.base_url) == ("MiniCPM4-8B", ["http://localhost:8000/v1"])
    assert blocks.openai.api_key == SecretStr("abc")
    assert (blocks.openai.concurrency, blocks.openai.retries, blocks.openai.base_delay) == (8, 3, 1.0)
    assert (blocks.hf.gpu_ids, blocks.hf.batch_size) == ((2, 3), 8)
    assert settings.sampling_params.given() == {"temperature": 0.7, "top_p": 0.8, "max_tokens": 2048}
    assert settings.extra_params == {"chat_template_kwargs": {"enable_thinking": False}}
    assert (settings.system_prompt, settings.image_tag) == ("", None)


@pytest.mark.parametrize("empty", ["''", "' '", "[]", "null"])
def test_an_empty_address_is_none(tmp_path, empty):
    file = tmp_path / "parameter.yaml"
    file.write_text(f"backend_configs: {{openai: {{provider: groq, model_name: m, base_url: {empty}}}}}")
    assert Configuration.load(file, environ={}).config.settings.backend_configs.openai.base_url == []


def test_the_shipped_file_starts_on_a_small_model_that_runs_anywhere():
    config = Configuration.load(ROOT / FILE_NAME, environ={}).config
    assert config.backend == "openvino" == Settings().backend
    for engine in ("openvino", "hf"):
        assert getattr(config.settings.backend_configs, engine).model_name_or_path == "smollm2-135m-instruct"
    assert not config.settings.backend_configs.openai.base_url, (
        "a key goes only where the user's own file or command points"
    )
    assert config.settings.backend_configs.vllm.model_name_or_path


def test_the_shipped_file_leaves_sampling_to_the_model():
    """Claude Opus 4.7 and Kimi K2.5 refuse any temperature but 1, MiniMax refuses 0."""
    assert Configuration.load(ROOT / FILE_NAME, environ={}).config.settings.sampling_params.given() == {}


@pytest.mark.parametrize("backend", ["openvino", "hf", "openai", "vllm"])
def test_every_block_of_the_shipped_file_is_ready_to_use(backend):
    assert Configuration.load(ROOT / FILE_NAME, backend=backend, environ={}).config.backend == backend


def test_the_file_of_the_launch_path_is_the_same():
    launch = ROOT / "servers" / "generation" / FILE_NAME
    assert launch.read_bytes() == (ROOT / FILE_NAME).read_bytes()


def test_an_empty_file_is_said_with_what_fills_it(write):
    for content in ("", "# nothing\n"):
        with pytest.raises(PromptmillError, match=r"holds no keys; `promptmill init -o .* --force`"):
            Configuration.load(write(content), environ={})


def test_what_set_brings_is_not_blamed_on_the_file(write):
    file = write("backend: hf")
    for assignment, said in (
        ("temperature=0", "`settings`: temperature belongs below sampling_params: sampling_params.temperature=…"),
        ("backend_configs.openai.concurency=8", "`settings`: backend_configs.openai.concurency: unknown key"),
    ):
        with pytest.raises(PromptmillError) as caught:
            Configuration.load(file, assignments=assigned([assignment]), environ={})
        assert str(caught.value).startswith(said)
    with pytest.raises(PromptmillError) as caught:
        Configuration.load(write("bakend: hf"), assignments={"backend_configs.openai.concurrency": 8}, environ={})
    assert "settings" not in str(caught.value)
    with pytest.raises(PromptmillError, match=r"^`settings`: 1: unknown key"):
        Configuration.load(write("backend: hf"), assignments={cast("str", 1): 2}, environ={})


@pytest.mark.parametrize("name", ["sk-proj-abc", "sk-abc123", "gsk_0123456789abcdefghij", "$OPENAI_API_KEY"])
def test_a_key_in_place_of_its_variables_name_is_refused_and_not_shown(write, name):
    file = write(f"backend: openai\nbackend_configs: {{openai: {{api_key_env: '{name}'}}}}")
    with pytest.raises(PromptmillError) as caught:
        Configuration.load(file, environ={})
    assert "backend_configs.openai.api_key_env: should be the NAME" in str(caught.value)
    assert name not in str(caught.value)


def test_a_byte_order_mark_is_no_key(write):
    assert Configuration.load(write(b"\xef\xbb\xbfbackend: openai"), environ={}).config.backend == "openai"


# Which file


def test_the_file_named_goes_first_then_the_environment_then_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILE_NAME).write_text("backend: hf")
    named, from_environment = tmp_path / "named.yaml", tmp_path / "environment.yaml"
    named.touch()
    from_environment.touch()
    environ = {"PROMPTMILL_CONFIG": str(from_environment)}
    assert find(named, environ) == named
    assert find(None, environ) == from_environment
    assert find(None, {}).resolve() == tmp_path / FILE_NAME


def test_the_folder_of_the_user_comes_next_and_then_the_shipped_file(tmp_path, tmp_path_factory, monkeypatch):
    import platformdirs

    monkeypatch.chdir(tmp_path)
    assert find(None, {}).read_bytes() == (ROOT / FILE_NAME).read_bytes()
    mine = platformdirs.user_config_path("promptmill") / FILE_NAME
    ours = tmp_path_factory.getbasetemp().parent
    assert mine.is_relative_to(ours), "a test may not write to the real configuration folder"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert find(None, {}) == mine


def test_a_file_that_is_named_must_be_there(tmp_path):
    for path, environ in ((tmp_path / "a.yaml", {}), (None, {"PROMPTMILL_CONFIG": str(tmp_path / "a.yaml")})):
        with pytest.raises(PromptmillError, match="There is no configuration file at") as caught:
            find(path, environ)
        assert str(tmp_path / "a.yaml") in str(caught.value)


# What is wrong with it


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("backend: [", "The { or [ in line 1 is not closed"),
        ("backend:\n\thf", "Line 2 is indented with a tab"),
        ('backend: "\0"', "is not valid YAML"),
        ("backend: hf\nbackend: openai", "line 2: the key backend occurs twice"),
        ("sampling_params:\n  top_k: 1\n  top_p: 1\n  top_k: 2", "line 4: the key top_k occurs twice"),
        ("[1, 2]", "should hold keys and values, not a list of 2"),
        ("hello", "should hold keys and values, not a text"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        ("? [a]\n: 1", "found unhashable key"),
        ("? !!set {a}\n: 1", "found unhashable key"),
        ("1: 2", "Keys should be strings"),
        ("extra_params: !!timestamp 2024-13-45", "month must be in 1..12"),
        ("extra_params: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("extra_params: &self {a: *self}", "nested too deeply"),
        ("extra_params: {a: &self [*self]}", "nested too deeply"),
        ('extra_params: !!python/object/apply:os.system ["true"]', "could not determine a constructor"),
    ],
)
def test_what_is_no_configuration_is_said_with_its_place(write, content, said):
    file = write(content)
    problem = _problem(file)
    assert said in problem
    assert len(problem) < 500


def test_a_mapping_may_merge_several_others():
    text = "a: &a {x: 1}\nb: &b {y: 2}\nc:\n  <<: *a\n  <<: *b\n"
    assert yaml.load(text, _Loader)["c"] == {"x": 1, "y": 2}


def test_a_folder_is_no_configuration(tmp_path):
    assert "There is no configuration file" in _problem(tmp_path)
    (tmp_path / "parameter.yaml").write_text("backend: hf")
    assert f"{tmp_path} is a folder; name the file in it" in _problem(tmp_path)


def test_a_variable_that_names_no_file_is_named():
    with pytest.raises(PromptmillError, match=r"^PROMPTMILL_CONFIG: There is no configuration file"):
        Configuration.load(environ={"PROMPTMILL_CONFIG": "/no/where.yaml"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("bakend: hf", "bakend: unknown key; did you mean backend?"),
        ("backend_configs: {opnai: {}}", "backend_configs.opnai: unknown key; did you mean openai?"),
        (
            "backend_configs: {openai: {concurency: 2}}",
            "backend_configs.openai.concurency: unknown key; did you mean concurrency?",
        ),
        ("xyz: 1", "xyz: unknown key; known keys: backend, backend_configs,"),
        ("'x[0]': 1", "x[0]: unknown key; known keys: backend, backend_configs,"),
        ("backend_configs: {openai: {'a[b': 1}}", "backend_configs.openai.a[b: unknown key"),
    ],
)
def test_an_unknown_key_is_an_error_with_its_path_and_the_nearest_known_one(write, content, said):
    assert said in _problem(write(content))


@pytest.mark.parametrize(
    ("content", "path", "said"),
    [
        ("backend: 5", "backend", "not a number"),
        ("cache: [1]", "cache", "should be true or false or text, not a list of 1"),
        ("str: 1", "str", "unknown key"),
        ("models: {str: 5}", "models.str", "should hold keys and values"),
        ("backend_configs: {openai: {headers: {str: 5}}}", "backend_configs.openai.headers.str", "should be text"),
        ("backend_configs: {openai: {api_key: 5}}", "backend_configs.openai.api_key", "should be text or a list, not"),
        ("backend: [vllm]", "backend", "should be text, not a list of 1"),
        ("backend: false", "backend", "should be text, not true or false"),
        ("backend: ${NOT_SET}", "backend", "the environment variable NOT_SET is not set"),
        ("models: {small: {backend: {vllm: 1}}}", "models.small.backend", "should be text"),
        ("models: {small: {backend: [vllm], hf: {}}}", "models.small.backend", "should be text, not a list of 1"),
        ("models: {small: {backend: 1, hf: {}}}", "models.small.backend", "should be text, not a number"),
        ("models: {small: {backend: '${NOT_SET}', hf: {}}}", "models.small", "NOT_SET is not set"),
        (
            "models: {small: {hf: {}, sampling_params: 3}}",
            "models.small.sampling_params",
            "should hold keys and values",
        ),
        ("models: {small: {hf: {}, sampling_params: '${NOT_SET}'}}", "models.small", "NOT_SET is not set"),
        ("sampling_params: [1]\nmodels: {small: {hf: {}}}", "sampling_params", "should hold keys and values"),
        ("backend_configs: [1]", "backend_configs", 'not a list of 1; remove the "- "'),
        ("backend_configs: {openai: text}", "backend_configs.openai", "should hold keys and values, not a text"),
        ("backend_configs: {openai: {concurrency: lots}}", "backend_configs.openai.concurrency", "not a text"),
        (
            "backend_configs: {openai: {concurrency: 0}}",
            "backend_configs.openai.concurrency",
            "at least 1",
        ),
        (
            "backend_configs: {openai: {concurrency: -3}}",
            "backend_configs.openai.concurrency",
            "at least 1",
        ),
        ("backend_configs: {openai: {base_url: 5}}", "backend_configs.openai.base_url", "not a number"),
        ("backend_configs: {openai: {base_url: [a, 5]}}", "backend_configs.openai.base_url[1]", "not a number"),
        ("backend_configs: {openai: {timeout: 0}}", "backend_configs.openai.timeout[0]", "greater than 0"),
        ("backend_configs: {hf: {dtype: int4}}", "backend_configs.hf.dtype", "should be 'auto'"),
        ("sampling_params: {temperature: .inf}", "sampling_params.temperature", "finite"),
        ("sampling_params: {temperature: .nan}", "sampling_params.temperature", "finite"),
        ("on_error: explode", "on_error", "should be 'report' or 'raise'"),
        ("call_timeout: 0", "call_timeout", "greater than 0"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_path(write, content, path, said):
    problem = _problem(write(content))
    assert problem.startswith(f"{path}: ")
    assert said in problem


@pytest.mark.parametrize(
    "content",
    [
        "backend_configs: {openai: {api_key: {a: hunter2}}}",
        "backend_configs: {openai: {concurrency: hunter2}}",
        "backend_configs: {hf: {device: hunter2}}",
        "backend_configs: {openai: {headers: {x: [hunter2]}}}",
        "sampling_params: {temperature: hunter2}",
        "on_error: hunter2",
    ],
)
def test_a_wrong_value_is_not_quoted(write, content):
    assert "hunter2" not in _problem(write(content))


def test_all_that_is_wrong_is_said_at_once(write):
    problem = _problem(write("backend_configs: {openai: {rpm: -1}}\nsampling_params: {top_p: 2}"))
    assert "backend_configs.openai.rpm:" in problem
    assert "sampling_params.top_p:" in problem


def test_a_merge_key_is_yaml_like_any_other(write):
    settings = Configuration.load(
        write(
            "backend_configs:\n  hf: &mine {batch_size: 3, dtype: float32}\n  vllm:\n    <<: *mine\n    dtype: auto\n"
        )
    ).config.settings
    assert settings.backend_configs.vllm.model_extra == {"batch_size": 3}
    assert settings.backend_configs.vllm.dtype == "auto"


# The environment


def test_a_variable_reads_the_environment(write):
    file = write("system_prompt: 'I am ${WHO}.'\nbackend_configs: {openai: {concurrency: '${N}'}}")
    settings = Configuration.load(file, environ={"WHO": "Ada ${N}", "N": "7"}).config.settings
    assert settings.system_prompt == "I am Ada ${N}.", "what a variable holds is not read again"
    assert settings.backend_configs.openai.concurrency == 7


def test_a_variable_may_have_a_default(write):
    file = write("system_prompt: '${WHO:-nobody}'\nimage_tag: '${TAG:-}'")
    assert Configuration.load(file, environ={}).config.settings.system_prompt == "nobody"
    assert Configuration.load(file, environ={}).config.settings.image_tag == ""
    assert Configuration.load(file, environ={"WHO": "Ada"}).config.settings.system_prompt == "Ada"


def test_a_variable_that_is_not_set_is_an_error_with_its_path(write):
    content = "backend: openai\nbackend_configs: {openai: {api_key: '${MY_KEY}'}}"
    said = "the environment variable MY_KEY is not set; set it: `export MY_KEY=…`."
    assert _problem(write(content)) == f"backend_configs.openai.api_key: {said}"


@pytest.mark.parametrize(
    "block", ["api_key: '${X}'", "base_url: ['${X}']", "headers: {a: '${X}'}", "timeout: [5, '${X}']"]
)
def test_a_variable_of_a_block_that_is_not_used_may_be_missing(write, block):
    file = write(f"backend: hf\nbackend_configs: {{openai: {{{block}, concurrency: 3}}}}")
    configuration = Configuration.load(file, environ={})
    assert configuration.config.settings.backend_configs.openai.concurrency == 3
    with pytest.raises(PromptmillError, match="X is not set"):
        configuration.overlaid(Overrides(backend="openai"))


# The command line


def test_assignments_lie_over_the_file(write):
    file = write("backend: hf\nbackend_configs: {openai: {concurrency: 2, retries: 2}}")
    assignments = ["backend_configs.openai.concurrency=9", "sampling_params.stop=[a, b]", "system_prompt=be brief"]
    config = Configuration.load(file, assignments=assigned(assignments), backend="openai", environ={}).config
    assert config.backend == "openai"
    assert (config.settings.backend_configs.openai.concurrency, config.settings.backend_configs.openai.retries) == (
        9,
        2,
    )
    assert config.settings.sampling_params.stop == ["a", "b"]
    assert config.settings.system_prompt == "be brief"


def test_an_assigned_mapping_leaves_the_options_beside_it(write):
    values: dict[tuple[str, ...], Any] = {("sampling_params", "seed"): 3, ("sampling_params", "temperature"): 0.9}
    config = Configuration.load(
        write("sampling_params: {top_p: 0.5}"),
        assignments={"sampling_params": {"temperature": 0.2}, "models": {}, "backend_configs.openai": {}},
        values=lambda _: values,
        environ={},
    ).config
    assert config.settings.sampling_params.given() == {"seed": 3, "temperature": 0.2}
    config = Configuration.load(
        write("backend: openai"),
        assignments={"backend_configs": {"openai": {"rpm": 60}}},
        values=lambda _: {("backend_configs", "openai", "model_name"): "m"},
        environ={},
    ).config
    assert (config.settings.backend_configs.openai.rpm, config.model) == (60, "m")


def test_the_last_assignment_of_a_key_counts_where_it_stands(write):
    assignments = ["sampling_params.seed=1", "sampling_params={seed: 2, top_k: 3}", "sampling_params.seed=4"]
    config = Configuration.load(write("backend: hf"), assignments=assigned(assignments), environ={}).config
    assert config.settings.sampling_params.given() == {"seed": 4, "top_k": 3}


@pytest.mark.parametrize("key", ["extra_params: {x: 1}", "price: {input: 1, output: 2}"])
def test_a_key_that_no_model_uses_is_an_error(write, key):
    models = "models: {m: {openai: {base_url: 'http://a/v1', model_name: m}}}"
    name = key.partition(":")[0]
    assert (
        _problem(write(f"{models}\n{key}")) == f"{name}: no model uses it, because each has its own: models.m.{name}."
    )
    assert Configuration.load(write(f"backend: hf\n{models}\n{key}"), environ={}).names == ("default", "m")


def test_an_assigned_sampling_parameter_applies_to_all_models(write):
    file = write("models: {m: {hf: {}, sampling_params: {temperature: 0.7, max_tokens: 9}}}")
    configuration = Configuration.load(file, assignments={"sampling_params.temperature": 0.2}, environ={})
    sampling = configuration.config_of("m").settings.sampling_params
    assert (sampling.temperature, sampling.max_tokens) == (0.2, 9)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("concurrency", "write key.path=value"),
        ("=3", "write key.path=value"),
        ("nope=3", "nope: unknown key"),
        ("backend_configs.openai.concurrency=true", "backend_configs.openai.concurrency: should be a number"),
        ("backend_configs.openai.nope.deeper=1", "backend_configs.openai.nope: unknown key"),
        ("extra_params={a: 1, a: 2}", "the key a occurs twice"),
        ("sampling_params.temperature=2024-13-45", "sampling_params.temperature: should be a number"),
        ("extra_params=" + "[" * 3000, "nested too deeply"),
        ("extra_params=&a [*a]", "`settings` is nested too deeply."),
        ("nope=", "nope: unknown key"),
    ],
)
def test_an_assignment_that_cannot_work_is_an_error(write, assignment, said):
    assert said in _problem(write("backend: hf"), assignment)


# What a call lays over it


OPERATOR = {
    "backend": "openai",
    "backend_configs": {"openai": {"model_name": "m", "concurrency": 4}, "hf": {"model_name_or_path": "x"}},
    "sampling_params": {"temperature": 0.5, "max_tokens": 9},
    "extra_params": {"a": 1},
    "system_prompt": "S",
}


def test_nothing_said_leaves_the_configuration():
    configuration = Configuration(OPERATOR)
    assert configuration.overlaid(Overrides()) == configuration.config


def test_blocks_of_a_call_lie_over_those_of_the_file_key_by_key():
    blocks = {"openai": {"concurrency": 2}, "hf": None}
    config = Configuration(OPERATOR).overlaid(Overrides(backend_configs=blocks))
    openai = config.settings.backend_configs.openai
    assert (openai.model_name, openai.concurrency) == ("m", 2)
    assert config.settings.backend_configs.hf.model_name_or_path == "x"
    assert config.from_call == {"concurrency"}
    assert config.operator.backend_configs.openai.concurrency == 4


def test_sampling_and_extra_parameters_of_a_call_replace_those_of_the_file_when_not_empty():
    configuration = Configuration(OPERATOR)
    config = configuration.overlaid(Overrides(sampling_params={"top_p": 0.9}, extra_params={}))
    assert config.settings.sampling_params.given() == {"top_p": 0.9}
    assert config.settings.extra_params == {"a": 1}


def test_a_call_does_not_change_what_the_next_one_starts_from():
    configuration = Configuration(OPERATOR)
    configuration.overlaid(Overrides("hf", {"openai": {"concurrency": 2}}, {"top_p": 1}, {"b": 2}))
    assert configuration.overlaid(Overrides()) == configuration.config


def test_a_variable_in_a_call_is_text():
    config = Configuration(OPERATOR).overlaid(
        Overrides(backend_configs={"openai": {"base_url": "http://evil/${HOME}", "model_name": "${OPENAI_API_KEY:-x}"}})
    )
    assert config.settings.backend_configs.openai.base_url == ["http://evil/${HOME}"]
    assert config.settings.backend_configs.openai.model_name == "${OPENAI_API_KEY:-x}"


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"opnai": {}}, "backend_configs.opnai: unknown key; did you mean openai?"),
        ({"openai": [1]}, "backend_configs.openai: should be an object, not a list of 1"),
        ({"openai": {"retries": 0}}, "backend_configs.openai.retries: should be at least 1"),
    ],
)
def test_what_is_wrong_in_a_call_is_said_with_its_path(blocks, said):
    with pytest.raises(PromptmillError) as caught:
        Configuration(OPERATOR).overlaid(Overrides(backend_configs=blocks))
    assert said in str(caught.value)


# Over HTTP


def _over_http(tmp_path, text=""):
    file = tmp_path / "parameter.yaml"
    file.write_text("backend: openai\n" + text)
    return Configuration.load(file, defaults=HTTP_DEFAULTS).config.settings


@pytest.mark.parametrize("text", ["", "call_timeout:\nallowed_roots: null"])
def test_over_http_a_call_ends_some_time_and_files_are_out_of_reach(tmp_path, text):
    settings = _over_http(tmp_path, text)
    assert (settings.call_timeout, settings.allowed_roots) == (3600, [])


def test_over_http_the_operator_may_say_otherwise(tmp_path):
    settings = _over_http(tmp_path, "call_timeout: 5\nallowed_roots: [/data]")
    assert (settings.call_timeout, settings.allowed_roots) == (5, ["/data"])


def test_two_dollar_signs_write_a_variable_literally(write):
    settings = Configuration.load(
        write("system_prompt: 'Say $${name} and ${NAME}, ${NONE:-none}.'"), environ={"NAME": "hello"}
    ).config.settings
    assert settings.system_prompt == "Say ${name} and hello, none."


def test_a_tilde_in_the_environments_path_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("backend: openai")
    assert find(None, {"PROMPTMILL_CONFIG": "~/mine.yaml"}) == tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "backend_configs: {openai: {api_base: x}}",
            "backend_configs.openai.api_base: unknown key; did you mean base_url?",
        ),
        (
            "temperature: 0.5",
            "temperature: unknown key; it belongs below sampling_params: `sampling_params: {temperature: …}`",
        ),
        ("concurrency: 8", "concurrency: unknown key; it belongs below backend_configs.openai."),
        ("backend_configs: {openai: {system_prompt: x}}", "it belongs at the top level of the file"),
        ("backend_configs: {openai: {model: x}}", "openai.model: unknown key; did you mean model_name?"),
        ("backend_configs: {openai: {token: x}}", "openai.token: unknown key; did you mean api_key?"),
        ("system: Hi", "system: unknown key; did you mean system_prompt?"),
        ("backend_configs: {hf: {model: x}}", "hf.model: unknown key; did you mean model_name_or_path?"),
        ("backend: vllm\nmodel: x", "for hf, vllm and openvino it is `model_name_or_path`."),
        (
            "backend: openai\nopenai: {model_name: x}",
            "openai: unknown key; it belongs below backend_configs: `backend_configs: {openai: …}`",
        ),
        (
            "model_list: [{model_name: x}]",
            "model_list: unknown key; this key is LiteLLM's. Write `models: {NAME: {backend:",
        ),
        ('sampling_params: {temperature: "0,7"}', "should be a number, not '0,7'; write 0.7."),
        ('sampling_params: {max_tokens: "4,000"}', "should be a whole number, not '4,000'; write 4000."),
        ("sampling_params: {max_tokens: 1e3}", "should be a whole number, not '1e3'; write 1000."),
        ("sampling_params: {max_tokens: many}", "should be a whole number, not a text."),
        ("backend_configs: {ollama: {model: x}}", "Ollama is an endpoint: `backend: openai`"),
        ("backend_configs: {hf: {device: gpu}}", "backend_configs.hf.device: is not one of `auto`, `cpu`, `cuda`"),
    ],
)
def test_a_mistake_is_told_with_its_file_and_what_to_write_instead(tmp_path, content, said):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(PromptmillError) as caught:
        Configuration.load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in caught.value.message
