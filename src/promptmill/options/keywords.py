"""The keywords of `promptmill.bulk` and its variants, for editors. Written by `scripts/docs.py` from the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from promptmill.answers.response_format import AnswerType


class PromptOptions(TypedDict, total=False):
    """Options: prompt."""

    prompt: str | Sequence[str] | Mapping[str, str] | None
    """The prompt for each row, such as 'Classify: {{text}}'; several, by name, are each asked."""
    prompt_column: str | None
    """The column with the prompts; default: `prompt`."""
    system: str | None
    """System prompt above every row."""
    image_column: str | None
    """With `prompt`: the column that holds each row's image, a path or URL; default: `images`."""
    audio_column: str | None
    """With `prompt`: the column that holds each row's recording, a path."""
    row_settings: bool
    """With `prompt` or `prompt_column`: rows also set their model, settings and system prompt."""
    skip_empty: bool
    """Leave out rows in which all cells of the prompt are empty; else they fail."""


class FileOptions(TypedDict, total=False):
    """Options: file."""

    each: Literal["file", "line"] | None
    """What is a row; default: each file of a folder of texts or images, and each line of a table."""
    pdf: Literal["text", "images", "file"] | None
    """What is sent of PDFs: `file`: the PDF itself; default: each page as its text, or a scan as an image."""
    sql: str | None
    """The query that gives the rows: of a database, or of the files that it names."""
    encoding: str | None
    """Encoding of CSV, TSV and text, if not UTF-8: cp1252, utf-16, …"""
    header_row: int | None
    """The line or row of a sheet with the column names, if titles are above it."""
    overwrite: bool
    """Replace the output even if another program wrote it."""
    state: str | Path | None
    """The folder of jobs; default: beside each output."""


class AnswerOptions(TypedDict, total=False):
    """Options: answer."""

    choices: str | Path | Sequence[str] | Mapping[str, str] | None
    """Allow only these answers; an object or a file also defines them."""
    schema: AnswerType | str | Path | None
    """A JSON Schema that every answer must satisfy; a file, or fields in one line: name,amount:number,day:date."""
    fields: bool | str | Sequence[str] | Mapping[str, str | type | Sequence[str]]
    """`schema` in one line: name!,amount:number,mood:low<high, where only `!` demands a value; False: a JSON text,
    not a column for each field."""
    check: Callable[[Any, Mapping[str, Any]], str | None] | None
    """A function that gets each answer with its row, and returns what is wrong with it, or None."""
    choices_many: bool
    """With `choices`: an answer may be any number of them."""
    answer_column: str
    """The column of the answers; `answer_1` if the rows have a column `answer`."""
    columns: Sequence[str] | None
    """Only these of promptmill's columns: answer,error."""
    n: int | None
    """The number of answers to each row."""
    reasoning: Literal["separate", "inline"] | None
    """Where the model's thoughts are: in a column of their own, or in the answer."""
    logprobs: bool | None
    """The probabilities of the answer's tokens."""
    top_logprobs: int | None
    """This many other tokens at each position, with probabilities."""
    top_choices: int | None
    """This many of the `choices`, with their probabilities."""


class ModelOptions(TypedDict, total=False):
    """Options: model."""

    config: str | Path | None
    """Configuration file; default: PROMPTMILL_CONFIG, ./parameter.yaml, …"""
    backend: str | None
    """The backend, in place of the file's: auto, hf, openai, openvino, vllm."""
    settings: Mapping[str, Any] | None
    """Values of keys by their paths, {\"backend_configs.openai.rpm\": 60}."""
    model: str | Sequence[str] | None
    """A name of the configuration, or the backend's own name for a model; several are compared."""
    base_url: str | Sequence[str] | None
    """An OpenAI-compatible endpoint, such as localhost:11434."""
    provider: str | None
    """A provider that `promptmill models --providers` lists."""
    api_key: str | Sequence[str] | None
    """The endpoint's key, better by `api_key_env`."""
    api_key_env: str | None
    """The environment variable that holds the endpoint's key."""
    concurrency: int | None
    """Most requests in flight."""
    tier: Literal["default", "flex", "priority"] | None
    """Service tier; flex: half the price, slower, waits for capacity."""
    price: str | tuple[float, float] | Sequence[str] | Mapping[str, str | tuple[float, float]] | None
    """US dollars a million tokens in and out: \"0.25/2\"; by model: {\"small\": \"0.1/0.4\"}."""


class SamplingOptions(TypedDict, total=False):
    """Options: sampling."""

    temperature: float | None
    """0 for the likeliest answer."""
    max_tokens: int | None
    """Longest answer, in tokens."""
    top_p: float | None
    """Only the likeliest tokens that have this probability together."""
    top_k: int | None
    """Only this number of the likeliest tokens."""
    min_p: float | None
    """Only tokens with this share of the likeliest one's probability."""
    seed: int | None
    """The same seed gives the same answers, where the engine can."""
    stop: str | Sequence[str] | None
    """Texts that end an answer."""
    presence_penalty: float | None
    """Above 0: used tokens become less likely."""
    frequency_penalty: float | None
    """Above 0: tokens become less likely with each use."""
    repetition_penalty: float | None
    """Above 1: fewer repetitions, on engines."""
    reasoning_effort: str | None
    """How long the model thinks: low, medium, high."""
    enable_thinking: bool | None
    """Whether the model thinks."""


class ToolOptions(TypedDict, total=False):
    """Options: tool."""

    tools: Sequence[Mapping[str, Any]] | None
    """Tools that the model may call, as OpenAI has them."""
    tool_choice: str | Mapping[str, Any] | None
    """Which of the `tools` the model calls."""
    parallel_tool_calls: bool | None
    """Whether the model may call several tools at once."""


class LimitOptions(TypedDict, total=False):
    """Options: limit."""

    limit: int | None
    """Only the first N rows; run without it for the rest."""
    sample: int | None
    """Only N random rows; run without it for the rest."""
    max_cost: float | None
    """Stop before the job costs more, in US dollars."""
    max_failures: int | str | None
    """Stop when more rows than this have failed."""
    dedupe: bool
    """Send identical rows at temperature 0 once."""
    shard: str | None
    """Only this part of the rows, 3/16; `promptmill jobs OUTPUT --join` puts the parts together."""


class JobOptions(TypedDict, total=False):
    """Options: job."""

    again: Literal["failed", "truncated", "all"] | None
    """Send these rows again; old answers stay until then."""
    keep: bool
    """Keep answers of an earlier prompt or model, where `again` would send their rows anew; `changed` names the
    difference."""
    from_job: str | Path | Sequence[str | Path] | None
    """The id or the output of another job, whose answers are used, too."""
    progress: bool | Callable[[Mapping[str, Any]], object] | None
    """True: progress in a notebook or on stderr; False: none; or a function that gets the status."""


class AskOptions(TypedDict, total=False):
    """Options: ask."""

    ask: Mapping[str, str | tuple[str, Sequence[str] | Mapping[str, str]]] | None
    """Several questions, each its own column: `{'Tone': 'Which tone? {{text}}', 'Why': 'Why {{Tone}}? {{text}}'}`;
    without columns, they are asked about `prompt`."""


class BatchesOptions(TypedDict, total=False):
    """Options: batches."""

    batch: bool
    """Send rows by the provider's Batch API: cheaper, within a day; other rows are sent live."""
    by: str | None
    """With `batch`: the time at which open rows are sent live: 06:00, 2026-03-01T06:00 or 6h from now."""
    poll: str | None
    """With `batch`: the time between two looks at the batch; default: 30s, growing to 15m."""
    keep_files: bool
    """With `batch`: leave the files at the provider."""


class ChecksOptions(TypedDict, total=False):
    """Options: checks."""

    max_words: int | None
    """An answer with more words is requested again, and then fails; a Chinese or Japanese character is a word."""
    match: str | None
    """An answer that does not match this regular expression as a whole is requested again, and then fails."""
    language: str | None
    """An answer in another language than this (its code: de, en, fr) is requested again, and then fails."""


class DecideOptions(TypedDict, total=False):
    """Options: decide."""

    decide: str | None
    """A model that decides: it gets the fields with a few allowed answers, and `model` gets the others; a row is two
    requests and one answer."""


class DocumentsOptions(TypedDict, total=False):
    """Options: documents."""

    split: int | Literal["auto"] | None
    """Read longer rows in pieces: each request has at most this many tokens, with its prompt and without the
    answer's `max_tokens`; `auto`: as many as the model takes; see docs/documents.md."""
    overlap: int | None
    """Tokens that a piece repeats from the piece before it; default: a twentieth, at most 200; 0 with `merge` `sum`."""
    merge: Literal["ask", "first", "sum", "distinct"] | None
    """If pieces have different values for a field: `ask` the model (the default), `first`, or the `sum` of numbers;
    `distinct` also makes equal objects of a list one."""
    merge_prompt: str | None
    """The request that makes one answer of the answers of the pieces."""


class EmbeddingsOptions(TypedDict, total=False):
    """Options: embeddings."""

    embed: str | bool | None
    """A vector of this text for each row, such as '{{title}} {{text}}', in place of an answer."""
    dimensions: int | None
    """How many numbers a vector has, for models that shorten their vectors."""
    picture_api: str | None
    """The API of the endpoint for vectors of pictures: doubao, jina, voyage or cohere."""


class GroupsOptions(TypedDict, total=False):
    """Options: groups."""

    group_by: str | Sequence[str] | None
    """One row for each group of rows with equal values in these columns; {{rows}} in `prompt` are its rows."""


class ItemsOptions(TypedDict, total=False):
    """Options: items."""

    rows_from: str | None
    """A field that holds a list: each item of the list becomes a row of the output."""


class LabelsOptions(TypedDict, total=False):
    """Options: labels."""

    sure: str | None
    """A strong model, which answers the rows where `model` may not agree with it; see docs/sure-labels.md."""
    agree: float | str | None
    """At least this share of labels must agree with the strong model; default: 95%; without `sure`: for rows
    together, with `model` on each row alone."""
    gold: str | None
    """A column with right labels of random rows: `agree` is then the share of right labels."""
    certainty: float | str | None
    """The confidence of `agree`; default: 95%."""
    student: bool | Literal["embeddings", "words"]
    """In place of `model`: a classifier that learns from the strong model's answers, and costs nothing: embeddings
    (the default where it can run) or words."""
    embed_model: str | None
    """The model of the vectors for `student` embeddings; default: an encoder on this machine."""
    second: str | None
    """A second cheap model; labels on which both agree are surer."""
    recall: Mapping[str, float | str] | None
    """By label: at least this share of the label's rows is delivered with it."""
    votes: int | None
    """Answers to each row, of which the most frequent label is taken; several models take turns; with `sure`, the
    cheap model gives all of them."""


class MaskOptions(TypedDict, total=False):
    """Options: mask."""

    mask: str | None
    """Replace personal data before anything is sent, and put it back: `email,phone,iban,card,id,names.csv`."""


class PassesOptions(TypedDict, total=False):
    """Options: passes."""

    passes: int | None
    """Ask again for the items that the list in an answer lacks, up to this many requests; equal items are one."""


class RayOptions(TypedDict, total=False):
    """Options: ray."""

    ray: str | None
    """Answer on a Ray cluster: HOST:PORT, or auto."""
    replicas: int
    """With `ray`: this many replicas of the model."""
    num_gpus: float
    """With `ray`: GPUs of each replica."""
    num_cpus: float
    """With `ray`: cores of each replica."""


class SourcesOptions(TypedDict, total=False):
    """Options: sources."""

    quote: bool | None
    """Ask for the words of the row that say each value, and look them up: a column `sources`."""
    web: bool | None
    """The provider searches the web for each answer; the pages that it cites are the column `sources`."""


class TogetherOptions(TypedDict, total=False):
    """Options: together."""

    together: int | None
    """Send up to this many rows in one request; `agree` measures how many answers this changes."""


class BulkOptions(
    PromptOptions,
    FileOptions,
    AnswerOptions,
    ModelOptions,
    SamplingOptions,
    ToolOptions,
    LimitOptions,
    JobOptions,
    AskOptions,
    BatchesOptions,
    ChecksOptions,
    DecideOptions,
    DocumentsOptions,
    EmbeddingsOptions,
    GroupsOptions,
    ItemsOptions,
    LabelsOptions,
    MaskOptions,
    PassesOptions,
    RayOptions,
    SourcesOptions,
    TogetherOptions,
    total=False,
):
    """The options of a call. None has the same effect as omitting the option."""
