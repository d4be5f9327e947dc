"""The options for labels: votes, and promises about labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.core.errors import Named, input_error
from promptmill.options.option import Argument, Flag, Keyword, Option, Without
from promptmill.options.table import SEVERAL

MOST_VOTES = 9
"""The most votes on a row. More votes hardly improve a label."""
_NO_CHEAP = ": no cheap model is asked"
_STUDENT = "scikit-learn"


def student(kind: str) -> str:
    """Return the kind of student with this name."""
    if kind != _STUDENT:
        raise input_error(f"{kind}: give it {_STUDENT}, or nothing behind INPUT and OUTPUT")
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


def _of_sure(
    name: str,
    words: str,
    flag: Flag,
    *,
    keyword: str = "",
    goes_without: Sequence[Without] = (),
    only_model: str = "",
) -> Option:
    """Return an option of sure labels; over MCP, it is a key of `sure`."""
    return Option(
        name,
        str,
        words,
        flag=flag,
        argument=Argument(within="sure"),
        keyword=Keyword(type=keyword),
        goes_with=[Named("sure", "MODEL")],
        goes_without=goes_without,
        only_model=only_model,
    )


OPTIONS = (
    Option(
        "sure",
        dict[str, Any],
        "a strong model, which answers the rows where {model} may not agree with it; see docs/sure-labels.md",
        flag=Flag(
            metavar="MODEL",
            words="a strong model; {model} answers where both surely agree, MODEL all other rows",
        ),
        argument=Argument(
            form='{"model": the strong one, "agree": 0.95}',
            words="with `choices` or `schema`: `model` is a strong model; the cheap one answers where both surely "
            "agree. `agree` (0.95) of the labels or more agree with it, with `certainty` (0.95); also `gold`, a column "
            "with right labels of random rows, which makes `agree` the share of right labels, `second`, another cheap "
            "model, `student`: true, a classifier that takes the place of the cheap model "
            '("scikit-learn", an extra, labels more rows), and `recall` by label',
        ),
        keyword=Keyword(type="str | None"),
        goes_without=[
            *SEVERAL,
            Without("shard"),
            Without("dedupe"),
            Without("keep"),
            Without("from_job"),
            Without("again", ": name another output for a new sample", "all"),
        ],
    ),
    _of_sure(
        "agree",
        "the share of labels that agree with the strong model, at least; else 95%",
        Flag(metavar="P%"),
        keyword="float | str | None",
    ),
    _of_sure(
        "gold",
        "a column with right labels of random rows: {agree} is then the share of right labels",
        Flag(metavar="COLUMN"),
        goes_without=[
            Without("student", ": the rows that train it have labels of the strong model, which may be wrong"),
            Without("recall", ": its promise is about all classes together"),
        ],
    ),
    _of_sure("certainty", "the certainty of that; else 95%", Flag(metavar="P%"), keyword="float | str | None"),
    _of_sure(
        "student",
        "in place of {model}: a classifier that learns from the strong model's answers, and costs nothing; that of "
        "scikit-learn (an extra) labels more of many rows",
        Flag(metavar="scikit-learn", read="promptmill.features.labels.options:student", bare=True),
        keyword='bool | Literal["scikit-learn"]',
        only_model="sure",
        goes_without=[
            Without("second", _NO_CHEAP),
            Without("votes", _NO_CHEAP),
            Without("model", ": it takes the model's place", when=_is_other_model),
        ],
    ),
    _of_sure(
        "second",
        "a second cheap model; labels on which both agree are surer",
        Flag(metavar="MODEL"),
        goes_without=[Without("votes", ": both say which labels are sure")],
    ),
    _of_sure(
        "recall",
        "also the share of a label's rows that are delivered with it, at least, by label",
        Flag(
            metavar="LABEL=P%",
            words="also: the share of the rows of LABEL that are delivered with it, at least",
            read="promptmill.features.labels.options:share_of_label",
            action="pairs",
        ),
        keyword="Mapping[str, float | str] | None",
    ),
    Option(
        "votes",
        int,
        "so many answers to each row vote; several models take turns; with {sure}, of the cheap model",
        flag=Flag(metavar="N"),
        argument=Argument(
            words="ask N times, or each of several models in turn; the majority decides",
            least=2,
            most=MOST_VOTES,
            also_within="sure",
        ),
        goes_without=[SEVERAL[1], Without("shard"), Without("dedupe")],
    ),
)
