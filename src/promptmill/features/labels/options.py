"""The options for labels: votes, and promises about labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.core.errors import Named, input_error
from promptmill.options.option import Argument, Excluded, Flag, Keyword, Option
from promptmill.options.table import SEVERAL

TOGETHER = "together"
"""The name of another feature's option and sampling parameter: the maximum number of rows in a request. An answer may
then depend on the other rows of its request."""
MOST_VOTES = 9
"""The most votes on a row. More votes hardly improve a label."""
_REPLACES_CHEAP = ": the student takes the cheap model's place"
_STUDENTS = ("embeddings", "words")


def student(kind: str) -> str:
    """Return `kind`, which must be a kind of student."""
    if kind not in _STUDENTS:
        raise input_error(f"{kind}: give it one of {', '.join(_STUDENTS)}, or nothing behind INPUT and OUTPUT")
    return kind


def share_of_label(text: str) -> tuple[str, str]:
    """Return a label and its share from `LABEL=SHARE`.

    >>> share_of_label("fraud=95%")
    ('fraud', '95%')
    """
    label, equal, share = text.rpartition("=")
    if not label or not equal:
        raise input_error(f"{text[:20]!r} is not LABEL=P%, such as fraud=95%")
    return label, share


def _is_other_model(present: Mapping[str, Any]) -> bool:
    """Return whether `model` differs from the strong model."""
    sure, model = present["sure"], present["model"]
    strong = sure.get("model") if isinstance(sure, Mapping) else sure
    return model not in (strong, [strong])


_STRONG = Named("sure", "MODEL")
_NO_OTHER_ANSWERS = [
    *SEVERAL,
    Excluded("shard"),
    Excluded("dedupe"),
    Excluded("keep"),
    Excluded("from_job"),
    Excluded("again", "; name another output for a new sample", "all"),
]
"""Options that give a row a label that the sample does not count."""


def _of_sure(
    name: str,
    words: str,
    flag: Flag,
    *,
    keyword: str = "",
    needs: Sequence[Named] = (_STRONG, Named("agree", "P%")),
    excludes: Sequence[Excluded] = (),
) -> Option:
    """Return an option of sure labels; over MCP, it is a key of `sure`."""
    return Option(
        name,
        str,
        words,
        flag=flag,
        argument=Argument(within="sure"),
        keyword=Keyword(type=keyword),
        needs=needs,
        excludes=excludes,
    )


OPTIONS = (
    Option(
        "sure",
        dict[str, Any],
        "a strong model, which answers the rows where {model} may not agree with it; see docs/sure-labels.md",
        flag=Flag(
            metavar="MODEL",
            words="a strong model, which answers the rows where {model} may not agree with it",
            is_common=True,
            brief="a strong model, only for rows where {model} is unsure",
        ),
        argument=Argument(
            form='{"model": STRONG, "agree": 0.95}',
            words="with `choices` or `schema`: `model` is a strong model; the cheap one answers where both surely "
            "agree. `agree` (0.95) of the labels or more agree with it, with `certainty` (0.95); also `gold`, a column "
            "with right labels of random rows, which makes `agree` the share of right labels, `second`, another cheap "
            "model, `student`: true, a classifier that takes the place of the cheap model (its kinds: "
            '"embeddings", which understands texts, or "words"), `embed_model` for its vectors, and '
            "`recall` by label",
        ),
        keyword=Keyword(type="str | None"),
        excludes=_NO_OTHER_ANSWERS,
    ),
    _of_sure(
        "agree",
        "at least this share of labels must agree with the strong model; default: 95%; without {sure}: for rows "
        "together, with {model} on each row alone",
        Flag(metavar="P%"),
        keyword="float | str | None",
        needs=(),  # checked by `Sure.check`, because `together` may be in the configuration
        excludes=_NO_OTHER_ANSWERS,
    ),
    _of_sure(
        "gold",
        "a column with right labels of random rows: {agree} is then the share of right labels",
        Flag(metavar="COLUMN"),
        excludes=[
            Excluded("student", ", which learns the strong model's labels, right or wrong"),
            Excluded("recall", ": it promises a share of right labels of all classes together"),
        ],
    ),
    _of_sure("certainty", "the confidence of {agree}; default: 95%", Flag(metavar="P%"), keyword="float | str | None"),
    _of_sure(
        "student",
        "in place of {model}: a classifier that learns from the strong model's answers, and costs nothing: embeddings "
        "(the default where it can run) or words",
        Flag(metavar="KIND", read="promptmill.features.labels.options:student", bare=True),
        keyword='bool | Literal["embeddings", "words"]',
        needs=[_STRONG],
        excludes=[
            Excluded(TOGETHER, ": the strong model answers each row alone, and the student needs no requests"),
            Excluded("second", _REPLACES_CHEAP),
            Excluded("votes", _REPLACES_CHEAP),
            Excluded("model", _REPLACES_CHEAP, when=_is_other_model),
        ],
    ),
    _of_sure(
        "embed_model",
        "the model of the vectors for {student} embeddings; default: an encoder on this machine",
        Flag(metavar="MODEL"),
        needs=[_STRONG],
    ),
    _of_sure(
        "second",
        "a second cheap model; labels on which both agree are surer",
        Flag(metavar="MODEL"),
        excludes=[Excluded("votes", ": both decide which labels are sure")],
    ),
    _of_sure(
        "recall",
        "by label: at least this share of the label's rows is delivered with it",
        Flag(
            metavar="LABEL=P%",
            words="at least this share of the rows of LABEL is delivered with this label",
            read="promptmill.features.labels.options:share_of_label",
            action="pairs",
        ),
        keyword="Mapping[str, float | str] | None",
    ),
    Option(
        "votes",
        int,
        "answers to each row, of which the most frequent label is taken; several models take turns; with {sure}, the "
        "cheap model gives all of them",
        flag=Flag(metavar="N"),
        argument=Argument(
            words="ask N times, or each of several models in turn; the majority decides",
            least=2,
            most=MOST_VOTES,
            also_within="sure",
        ),
        excludes=[SEVERAL[1], Excluded("shard"), Excluded("dedupe")],
    ),
)
