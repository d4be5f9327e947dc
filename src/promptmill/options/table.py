"""The table of all options of a job.

An option is one entry, from which each face makes its flag, argument or keyword. The code that uses an option reads it
by name, mostly in `jobs.store.order.JobOrder.of`. A feature's options are in its folder (`Feature.options`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from promptmill.config.backends import BACKENDS
from promptmill.core.errors import Named, PromptmillError, config_error
from promptmill.core.feature import features, hidden, part
from promptmill.options.option import Argument, Excluded, Face, Flag, Group, Keyword, Option

Again: TypeAlias = Literal["failed", "truncated", "all"]
"""The values of the option `again`, each of which selects rows to send again."""

ENDPOINT, SAMPLING_KEYS = "backend_configs.openai.", "sampling_params."
"""The prefixes of the configuration keys of endpoints, and of sampling parameters."""
NEEDS_OF_A_BUDGET = "needs a known price, and of texts `max_tokens`"
"""What `max_cost` requires, as words for messages. Answers of a closed form need no `max_tokens`."""
_PATHS, _FILE, _FILES, _STDIN, _URLS, _QUERY = "paths", "file", "files", "stdin", "urls", "query"
ROWS: Mapping[str, Mapping[Face, str]] = MappingProxyType(
    {
        _PATHS: {"flag": "files and folders of this machine", "keyword": "files and folders"},
        _FILE: {"argument": "`input_file`"},
        _FILES: {"argument": "`files`"},
        _STDIN: {"flag": "standard input (`-`)"},
        _URLS: {"flag": "URLs", "keyword": "URLs"},
        _QUERY: {"flag": "a query that names its files", "keyword": "a query that names its files"},
        "values": {"argument": "`prompts`", "keyword": "a list or a table"},
    }
)
"""The sources of a job's rows, with each face's name for them."""
SEVERAL = (
    Excluded("model", "; name one", words="several models", when=lambda present: _are_several(present["model"])),
    Excluded("prompt", "; write one", words="several prompts", when=lambda present: _are_several(present["prompt"])),
)
"""The `excludes` of an option that cannot be used with several models or several prompts."""
_FORMS = {"choices", "schema", "fields"}
"""The options for the form of an answer, which also apply to a single request."""
_FIELDS = Excluded("fields", when=lambda present: isinstance(present["fields"], str))


def _are_several(value: Any) -> bool:
    return not isinstance(value, str) and len({*value}) > 1


def _is_bare(price: object) -> bool:
    """Return whether a price, or one of several prices, names no model."""
    from promptmill.core.money import prices_in  # imported on use, because it imports asyncio

    return "" in prices_in(price)


def _sampling(name: str, kind: object, words: str, keyword: str = "") -> Option:
    """Return the option of a sampling parameter, which the command line sets as a configuration key."""
    within, keys = Argument(within="sampling_params"), [f"{SAMPLING_KEYS}{name}"]
    return Option(name, kind, words, flag=None, argument=within, keyword=Keyword(type=keyword), keys=keys)


PROMPTS = (
    Option(
        "prompt",
        str | dict[str, str],
        "the prompt for each row, such as 'Classify: {{text}}'; several, by name, are each asked",
        flag=Flag(
            metavar="TEXT",
            words="the prompt for each row, such as 'Classify: {{text}}'; repeat it as NAME=TEXT to compare prompts",
            action="several",
            one_of="prompt",
            is_common=True,
            brief="the prompt for each row, such as 'Classify: {{text}}'",
        ),
        argument=Argument(
            words="the prompt for each row: {{column}} is its cell, {{content}} a file's text; several by name, "
            '{"short": "…", "long": "…"}, are each asked',
            is_common=True,
        ),
        keyword=Keyword(type="str | Sequence[str] | Mapping[str, str] | None"),
        excludes=[Excluded("prompt_column", "; name the column in the prompt instead: {{column}}")],
    ),
    Option(
        "prompt_file",
        Path,
        "the same, from a file",
        flag=Flag(metavar="FILE", one_of="prompt"),
        argument=None,
        keyword=None,
    ),
    Option(
        "prompt_column",
        str,
        "the column with the prompts; default: `prompt`",
        flag=Flag(metavar="NAME", one_of="prompt", is_common=True),
    ),
    Option(
        "system",
        str,
        "system prompt above every row",
        "",
        flag=Flag(metavar="TEXT", is_common=True),
        argument=Argument("system_prompt", words="system prompt of every row", is_common=True),
        keyword=Keyword(type="str | None"),
    ),
    Option(
        "image_column",
        str,
        "with {prompt}: the column that holds each row's image, a path or URL; default: `images`",
        flag=Flag(metavar="NAME"),
    ),
    Option(
        "audio_column",
        str,
        "with {prompt}: the column that holds each row's recording, a path",
        flag=Flag(metavar="NAME"),
    ),
    Option(
        "row_settings",
        bool,
        "with {prompt} or {prompt_column}: rows also set their model, settings and system prompt",
        False,
    ),
    Option("skip_empty", bool, "leave out rows in which all cells of the prompt are empty; else they fail", False),
)
FILES = (
    Option(
        "each",
        Literal["file", "line"],
        "what is a row; default: each file of a folder of texts or images, and each line of a table",
        argument=Argument(words="whether each file of `files` is asked about, or each of its rows; default: `file`"),
        rows=[_PATHS, _FILES],
        excludes=[Excluded("sql")],
    ),
    Option(
        "pdf",
        Literal["text", "images", "file"],
        "what is sent of PDFs: `file`: the PDF itself; default: each page as its text, or a scan as an image",
        rows=[_PATHS, _FILES],
        excludes=[Excluded("each", value="line")],
    ),
    Option(
        "sql",
        str,
        "the query that gives the rows: of a database, or of the files that it names",
        flag=Flag(metavar="QUERY"),
        argument=Argument(words="the query whose result is the rows, if `input_file` is a .db"),
        rows=[_PATHS, _FILE, _URLS, _QUERY],
        names="more",
    ),
    Option(
        "encoding",
        str,
        "encoding of CSV, TSV and text, if not UTF-8: cp1252, utf-16, …",
        flag=Flag(metavar="NAME"),
        rows=[_PATHS, _FILE, _FILES, _STDIN, _URLS, _QUERY],
    ),
    Option(
        "header_row",
        int,
        "the line or row of a sheet with the column names, if titles are above it",
        flag=Flag(metavar="N"),
        argument=Argument(least=1),
        rows=[_PATHS, _FILE, _FILES, _STDIN, _URLS],
    ),
    Option(
        "input_format",
        str,
        "format of standard input, unless it is JSON: txt, csv.gz, …",
        "",
        flag=Flag(metavar="NAME"),
        argument=None,
        keyword=None,
        rows=[_STDIN],
        names="nothing",
    ),
    Option(
        "output_format",
        str,
        "format of standard output: jsonl, json, csv, …",
        "",
        flag=Flag(metavar="NAME"),
        argument=None,
        keyword=None,
        names="nothing",
    ),
    Option(
        "overwrite",
        bool,
        "replace the output even if another program wrote it",
        False,
        argument=Argument(words="replace another file at `output_file`, if the user agrees"),
    ),
    Option(
        "state",
        Path,
        "the folder of jobs; default: beside each output",
        flag=Flag(metavar="DIR"),
        argument=None,
        keyword=Keyword(type="str | Path | None"),
        names="more",
    ),
)
ANSWERS = (
    Option(
        "choices",
        list[str] | dict[str, str],
        "allow only these answers; an object or a file also defines them",
        flag=Flag(
            metavar="A,B,…",
            words="allow only these answers; or a file with the answers and their definitions: labels.csv",
            read="promptmill.jobs.inputs.short_forms:labels_of",
            one_of="form",
            is_common=True,
            brief="allow only these answers; or a file: labels.csv",
        ),
        argument=Argument(words="allow only these answers; an object also defines them", is_common=True),
        keyword=Keyword(type="str | Path | Sequence[str] | Mapping[str, str] | None"),
        keys=["sampling_params.choices", "sampling_params.definitions"],
        excludes=[Excluded("schema"), _FIELDS],
        names="file",
    ),
    Option(
        "schema",
        dict[str, Any],
        "a JSON Schema that every answer must satisfy; a file, or fields in one line: name,amount:number,day:date",
        flag=Flag(
            metavar="FILE|FIELDS",
            words="a file with the JSON Schema of every answer, or fields in one line: name,amount:number",
            read="promptmill.jobs.inputs.short_forms:named_schema",
            one_of="form",
            is_common=True,
            brief="fields of every answer: name,amount:number; or a file",
        ),
        argument=Argument(words="JSON Schema of every answer", is_common=True),
        keyword=Keyword(type="AnswerType | str | Path | None"),
        keys=["sampling_params.response_format"],
        excludes=[_FIELDS],
        names="file",
    ),
    Option(
        "fields",
        str | bool,
        "{schema} in one line: name!,amount:number,mood:low<high, where only `!` demands a value; False: a "
        "JSON text, not a column for each field",
        flag=Flag(
            metavar="A,B:TYPE,…",
            words="{schema} in one line: name!,amount:number,size:S|M|L,mood:low<high; a field without ! may be empty",
            read="promptmill.jobs.inputs.short_forms:named_schema",
            stored="schema",
            one_of="form",
        ),
        argument=Argument(
            words="columns: name!,amount:number,size:S|M|L,mood:low<high; `!`: not empty", is_common=True
        ),
        keyword=Keyword(type="bool | str | Sequence[str] | Mapping[str, str | type | Sequence[str]]"),
        names="file",
    ),
    Option(
        "no_fields",
        bool,
        "with {schema}: a JSON text, not a column for each field",
        flag=Flag(action="off", stored="fields"),
        argument=None,
        keyword=None,
    ),
    Option(
        "check",
        object,
        "a function that gets each answer with its row, and returns what is wrong with it, or None",
        flag=None,
        argument=None,
        keyword=Keyword(type="Callable[[Any, Mapping[str, Any]], str | None] | None"),
    ),
    Option(
        "choices_many", bool, "with {choices}: an answer may be any number of them", False, needs=[Named("choices")]
    ),
    Option(
        "answer_column",
        str,
        "the column of the answers; `answer_1` if the rows have a column `answer`",
        "answer",
        flag=Flag(metavar="NAME"),
    ),
    Option(
        "columns",
        list[str],
        "only these of promptmill's columns: answer,error",
        flag=Flag(metavar="A,B,…", read="promptmill.options.flag_values:names", is_common=True),
        keyword=Keyword(type="Sequence[str] | None"),
    ),
    _sampling("n", int, "the number of answers to each row"),
    Option(
        "reasoning",
        Literal["separate", "inline"],
        "where the model's thoughts are: in a column of their own, or in the answer",
        flag=None,
        argument=None,
        keys=["reasoning"],
    ),
    *(
        Option(name, kind, words, flag=None, argument=Argument(within="sampling_params"))
        for name, kind, words in (
            ("logprobs", bool, "the probabilities of the answer's tokens"),
            ("top_logprobs", int, "this many other tokens at each position, with probabilities"),
            ("top_choices", int, "this many of the {choices}, with their probabilities"),
        )
    ),
)
CONFIGURATION = (
    Option(
        "config",
        Path,
        "configuration file; default: PROMPTMILL_CONFIG, ./parameter.yaml, …",
        flag=Flag(metavar="PATH"),
        argument=None,
        keyword=Keyword(type="str | Path | None"),
        names="more",
    ),
    Option(
        "backend",
        str,
        f"the backend, in place of the file's: auto, {', '.join(sorted(BACKENDS))}",
        flag=Flag(metavar="NAME"),
        argument=None,
        keys=["backend"],
    ),
    Option(
        "settings",
        dict[str, Any],
        'values of keys by their paths, {"backend_configs.openai.rpm": 60}',
        flag=Flag("set", metavar="KEY.PATH=VALUE", words="override one key; may be repeated", action="append"),
        argument=None,
        keyword=Keyword(type="Mapping[str, Any] | None"),
    ),
)
MODEL = (
    Option(
        "model",
        str | list[str],
        "a name of the configuration, or the backend's own name for a model; several are compared",
        flag=Flag(
            "-m model",
            metavar="NAME",
            words="a name that `promptmill models` lists, or the backend's own name for a model",
            action="several",
            is_common=True,
            brief="a name in `promptmill models`, or the backend's own",
        ),
        argument=Argument(
            words="a name from promptmill://models, or any model of the endpoint; a list: each answers",
            is_common=True,
        ),
        keyword=Keyword(type="str | Sequence[str] | None"),
        keys=[f"{ENDPOINT}model_name", "backend_configs.hf.model_name_or_path"],
        check="promptmill.options.check:check_models",
        names="file",
    ),
    Option(
        "base_url",
        str,
        "an OpenAI-compatible endpoint, such as localhost:11434",
        flag=Flag(metavar="URL", is_common=True),
        argument=None,
        keyword=Keyword(type="str | Sequence[str] | None"),
        keys=[f"{ENDPOINT}base_url"],
    ),
    Option(
        "provider",
        str,
        "a provider that `promptmill models --providers` lists",
        flag=Flag(metavar="NAME", is_common=True),
        argument=None,
        keys=[f"{ENDPOINT}provider"],
    ),
    Option(
        "api_key",
        str,
        "the endpoint's key, better by {api_key_env}",
        flag=None,
        argument=None,
        keyword=Keyword(type="str | Sequence[str] | None"),
        keys=[f"{ENDPOINT}api_key"],
    ),
    Option(
        "api_key_env",
        str,
        "the environment variable that holds the endpoint's key",
        flag=Flag("key-env", metavar="NAME", read="promptmill.options.flag_values:variable"),
        argument=None,
        keys=[f"{ENDPOINT}api_key_env"],
    ),
    Option(
        "concurrency",
        int,
        "most requests in flight",
        flag=Flag(metavar="N"),
        argument=None,
        keys=[f"{ENDPOINT}concurrency"],
    ),
    Option(
        "tier",
        Literal["default", "flex", "priority"],
        "service tier; flex: half the price, slower, waits for capacity",
        argument=None,
    ),
    Option(
        "price",
        dict[str, str],
        'US dollars a million tokens in and out: "0.25/2"; by model: {"small": "0.1/0.4"}',
        flag=Flag(
            metavar="[MODEL=]IN/OUT",
            words="US dollars for a million tokens of prompts and of answers: 0.25/2; 0.25/2/0.5 if a batch costs "
            "half; by model small=0.1/0.4, repeated",
            read="promptmill.options.flag_values:price",
            action="append",
        ),
        argument=None,
        keyword=Keyword(
            type="str | tuple[float, float] | Sequence[str] | Mapping[str, str | tuple[float, float]] | None"
        ),
        keys=["price", "prices"],
        excludes=[
            Excluded(
                "model",
                "; give each its own, MODEL=IN/OUT",
                words="several models",
                when=lambda present: _are_several(present["model"]) and _is_bare(present["price"]),
            )
        ],
        names="nothing",
    ),
)
SAMPLING = (
    Option(
        "temperature",
        float,
        "0 for the likeliest answer",
        flag=Flag(metavar="T"),
        argument=Argument(within="sampling_params"),
        keys=[f"{SAMPLING_KEYS}temperature"],
    ),
    Option(
        "max_tokens",
        int,
        "longest answer, in tokens",
        flag=Flag(metavar="N"),
        argument=Argument(within="sampling_params"),
        keys=[f"{SAMPLING_KEYS}max_tokens"],
    ),
    Option(
        "sampling_params",
        dict[str, Any],
        "parameters in place of the configured ones: temperature, max_tokens, stop, …, and OpenAI's tools, "
        "tool_choice, logprobs; top_choices: 3 gives probabilities of `choices`",
        flag=None,
        keyword=None,
    ),
    _sampling("top_p", float, "only the likeliest tokens that have this probability together"),
    _sampling("top_k", int, "only this number of the likeliest tokens"),
    _sampling("min_p", float, "only tokens with this share of the likeliest one's probability"),
    _sampling("seed", int, "the same seed gives the same answers, where the engine can"),
    _sampling("stop", str, "texts that end an answer", "str | Sequence[str] | None"),
    _sampling("presence_penalty", float, "above 0: used tokens become less likely"),
    _sampling("frequency_penalty", float, "above 0: tokens become less likely with each use"),
    _sampling("repetition_penalty", float, "above 1: fewer repetitions, on engines"),
    _sampling("reasoning_effort", str, "how long the model thinks: low, medium, high"),
    _sampling("enable_thinking", bool, "whether the model thinks"),
)
TOOLS = tuple(
    Option(name, object, words, flag=None, argument=Argument(within="sampling_params"), keyword=Keyword(type=kind))
    for name, words, kind in (
        ("tools", "tools that the model may call, as OpenAI has them", "Sequence[Mapping[str, Any]] | None"),
        ("tool_choice", "which of the {tools} the model calls", "str | Mapping[str, Any] | None"),
        ("parallel_tool_calls", "whether the model may call several tools at once", "bool | None"),
    )
)
LIMITS = (
    Option(
        "limit",
        int,
        "only the first N rows; run without it for the rest",
        flag=Flag(metavar="N", is_common=True),
        argument=Argument(words="only the first N rows", is_common=True, least=0),
    ),
    Option(
        "sample",
        int,
        "only N random rows; run without it for the rest",
        flag=Flag(metavar="N", is_common=True),
        argument=Argument(least=1),
        excludes=[Excluded("limit"), Excluded("shard")],
    ),
    Option(
        "max_cost",
        float,
        "stop before the job costs more, in US dollars",
        flag=Flag(metavar="AMOUNT", read="promptmill.options.flag_values:amount", is_common=True),
        argument=Argument(words=f"most US dollars; {NEEDS_OF_A_BUDGET}", is_common=True, least=0),
        keys=["max_cost"],
    ),
    Option(
        "max_failures",
        str,
        "stop when more rows than this have failed",
        flag=Flag(metavar="N|P%"),
        argument=Argument(words="stop when more rows than this have failed: 100 or 5%"),
        keyword=Keyword(type="int | str | None"),
    ),
    Option("dedupe", bool, "send identical rows at temperature 0 once", False),
    Option(
        "shard",
        str,
        "only this part of the rows, 3/16; `promptmill jobs OUTPUT --join` puts the parts together",
        flag=Flag(metavar="I/N"),
        argument=None,
        rows=[_PATHS],
        needs=[Named("output")],
        excludes=[Excluded("limit"), *SEVERAL],
        names="nothing",
    ),
)
RUN = (
    Option(
        "validate",
        bool,
        "check the rows, estimate the price; send nothing",
        False,
        flag=Flag(
            "dry-run",
            words="check the rows, show three finished prompts and the price; send nothing",
            stored="validate",
            is_common=True,
            brief="show three prompts and the price; send nothing",
        ),
        argument=Argument(words="only check the rows, show prompts and the price", is_common=True),
        keyword=None,
    ),
    Option(
        "detach",
        bool,
        "run in the background; see `promptmill jobs`",
        False,
        flag=Flag(is_common=True),
        argument=None,
        keyword=None,
    ),
    Option(
        "again",
        Again,
        "send these rows again; old answers stay until then",
        flag=Flag(is_common=True),
        argument=Argument(
            words="send these rows of an earlier job again; old answers stay until new ones arrive", is_common=True
        ),
    ),
    Option(
        "keep",
        bool,
        "keep answers of an earlier prompt or model, where {again} would send their rows anew; "
        "`changed` names the difference",
        False,
        argument=Argument(words="keep answers made with other settings; later rows name the difference in `changed`"),
    ),
    Option(
        "from_job",
        str,
        "the id or the output of another job, whose answers are used, too",
        flag=Flag(
            "from",
            metavar="JOB",
            words="the id or the output of another job, whose answers are used, too; may be repeated",
            stored="from_job",
            action="append",
        ),
        keyword=Keyword(type="str | Path | Sequence[str | Path] | None"),
        names="file",
    ),
    Option("quiet", bool, "show no progress", False, flag=Flag("-q quiet"), argument=None, keyword=None),
    Option("json", bool, "print the result as JSON", False, argument=None, keyword=None),
    Option(
        "progress",
        bool,
        "True: progress in a notebook or on stderr; False: none; or a function that gets the status",
        flag=None,
        argument=None,
        keyword=Keyword(type="bool | Callable[[Mapping[str, Any]], object] | None"),
    ),
)

GROUPS = (
    Group("prompt", "prompts", PROMPTS),
    Group("file", "files", FILES),
    Group("answer", "answers", ANSWERS),
    Group("model", "configuration", CONFIGURATION),
    Group("model", "model", MODEL),
    Group("sampling", "sampling", SAMPLING),
    Group("tool", "tools", TOOLS),
    Group("limit", "limits", LIMITS),
    Group("job", "the run", RUN),
)
"""The options of the core."""


def groups() -> Sequence[Group]:
    """Return the groups of the core's options, and a group of each feature's options under the feature's name.

    Raises `PromptmillError` (`invalid_config`) if a feature's option has the name of another option.
    """
    return _groups(tuple((name, each.words, each.options) for name, each in features().items() if each.options))


@functools.cache
def _groups(added: Sequence[tuple[str, str, str]]) -> Sequence[Group]:
    found = [*GROUPS]
    known = {option.name: "promptmill" for group in GROUPS for option in group.options}
    for feature, words, name in added:
        found.append(Group(feature, f"{feature}: {words}", part(name)))
        for option in found[-1].options:
            if (other := known.setdefault(option.name, feature)) != feature:
                hides = f"PROMPTMILL_WITHOUT={feature} hides the feature {feature}."
                raise config_error("", f"The option {option.name} of {feature} is already one of {other}; {hides}")
    return tuple(found)


def of_answers() -> list[Option]:
    """Return the options of features that set a sampling parameter and nothing else, such as checks of the answer."""
    added = (option for group in groups()[len(GROUPS) :] for option in group.options)
    alone = (option for option in added if not option.implies and {other.field for other in option.needs} <= _FORMS)
    return [option for option in alone if any(key.startswith(SAMPLING_KEYS) for key in option.keys)]


def sampling_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling parameters that options of features set, by name."""
    return {
        key.removeprefix(SAMPLING_KEYS): given[option.name]
        for group in groups()[len(GROUPS) :]
        for option in group.options
        for key in option.keys
        if key.startswith(SAMPLING_KEYS) and given.get(option.name) is not None
    }


def with_implied(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options and the options that they imply, see `Option.implies`."""
    return {**given, **{name: value for name, (value, _) in _implied(given).items()}}


def _implied(given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return the values of implied options, each with the name of the option that implies it."""
    known = options()
    implied: dict[str, tuple[Any, str]] = {}
    for name, option in known.items():
        if option.implies and option.is_set(given.get(name)):
            values = part(option.implies)(given[name]).items()
            implied |= {
                other: (value, name)
                for other, value in values
                if other not in known or not known[other].is_set(given.get(other))
            }
    return implied


@contextlib.contextmanager
def errors_about(given: Mapping[str, Any]) -> Iterator[None]:
    """In the `with` block, let errors name the given options, not the options that these imply."""
    try:
        yield
    except PromptmillError as error:
        names = {name: other for name, (_, other) in _implied(given).items()}
        if not any(isinstance(each, Named) and each.field in names for each in error.parts):
            raise
        raise PromptmillError(error.code, _renamed(error.parts, names), _renamed(error.remedy, names)) from None


def _renamed(words: Sequence[str | Named], names: Mapping[str, str]) -> list[str | Named]:
    return [each if isinstance(each, str) else each._replace(field=names.get(each.field, each.field)) for each in words]


def needs_hidden(name: str, face: Face) -> str:
    """If an option of a hidden feature has the name `name` on `face`, return words such as `needs the feature order,
    which is hidden here`; otherwise `""`."""
    for feature, each in hidden().items():
        if any(option.name_on(face) == name for option in (part(each.options) if each.options else ())):
            return f"needs the feature {feature}, which is hidden here"
    return ""


def other_faces(name: str) -> str:
    """Return words that state on which faces an option exists that no tool has; `""` if there is no such option.

    >>> other_faces("progress")
    'in Python, `promptmill.bulk` has progress'
    """
    option = options().get(name)
    if option is None or option.argument is not None:
        return ""
    flag, keyword = option.name_on("flag"), option.name_on("keyword")
    places = [f"on the command line, `promptmill bulk` has {flag}"] if flag else []
    return ", and ".join([*places, *([f"in Python, `promptmill.bulk` has {keyword}"] if keyword else [])])


def keys_of(beginning: str) -> set[str]:
    """Return the configuration keys with the prefix `beginning` that options except `model` set, without the prefix."""
    keys = {key for option in options().values() if option.name != "model" for key in option.keys}
    return {key.removeprefix(beginning) for key in keys if key.startswith(beginning)}


def options() -> dict[str, Option]:
    """Return all options by name."""
    return {option.name: option for group in groups() for option in group.options}


def listing() -> str:
    """Return the keywords with their descriptions, for a function's docstring."""
    known, parts = options(), list[str]()
    for group in groups():
        entries = [
            f"    `{option.name_on('keyword')}`: {option.words_on('keyword', known)}."
            for option in group.options
            if option.keyword is not None
        ]
        if entries:
            parts += [f"\n{group.heading[:1].upper()}{group.heading[1:]}:", *entries]
    return "\n".join(parts).lstrip()
