"""The detectors of the kinds that a job masks."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from promptmill.core.errors import config_error, input_error
from promptmill.core.values import text_of
from promptmill.features.mask import numbers
from promptmill.features.mask.detection import Detect, Detectors, ValueSpan
from promptmill.features.mask.emails import emails
from promptmill.features.mask.masks import LONGEST_LABEL
from promptmill.features.mask.names import Names
from promptmill.features.mask.parameters import COLUMN, FUNCTION, KINDS, OF_COUNTRY

KEY = "sampling_params.mask"


class Kinds(NamedTuple):
    """The detectors of some kinds."""

    of_evidence: Detectors
    of_instructions: Detectors
    """The detectors for the words of a prompt: without names of one word, which may be ordinary words."""
    of_names: Detectors
    """The detectors for names of fields and tools: without functions, which may take any word for a value."""
    has_countries: bool
    """Whether phone numbers without the code of a country are masked, or none are."""
    columns: Sequence[str]
    """The columns whose values are masked in their rows."""

    @classmethod
    def of(cls, kinds: Sequence[str]) -> Kinds:
        """Return the detectors of some kinds, see `parameters`. Reads files of names; blocks. Raises
        `PromptmillError`."""
        countries: dict[str, list[str]] = {"phone": [], "id": []}
        for match in filter(None, map(OF_COUNTRY.fullmatch, kinds)):
            countries[match[1]].append(match[2])
        named = {*kinds, *(kind for kind, its in countries.items() if its)}
        folded: list[Detect] = [emails] if "email" in named else []
        folded += _of_numbers(named, countries["phone"], countries["id"])
        further = [kind for kind in kinds if kind not in KINDS and not OF_COUNTRY.fullmatch(kind)]
        columns = [kind.removeprefix(COLUMN) for kind in further if kind.startswith(COLUMN)]
        functions = [kind for kind in further if FUNCTION.fullmatch(kind) and not kind.startswith(COLUMN)]
        files = [kind for kind in further if kind not in functions and not kind.startswith(COLUMN)]
        names = [Names(name for file in files for name in _names_in(file))] if files else []
        own = [_detector(function) for function in functions]
        whole = [each.of_several_words for each in names]
        has_countries = "phone" not in named or bool(countries["phone"])
        of_evidence, of_instructions = Detectors([*folded, *names], own), Detectors([*folded, *whole], own)
        return cls(of_evidence, of_instructions, Detectors([*folded, *whole]), has_countries, columns)


def _of_numbers(named: set[str], regions: Sequence[str], countries: Sequence[str]) -> list[Detect]:
    if unknown := {*countries} - numbers.IDS.keys():
        raise config_error(KEY, f"no id of {min(unknown)} is known, but of {', '.join(numbers.IDS)}.")
    if len(regions) > numbers.MOST_COUNTRIES:
        raise config_error(KEY, f"phone names {len(regions)} countries; name at most {numbers.MOST_COUNTRIES}.")
    if regions and (region := numbers.unknown_region(regions)):
        raise config_error(KEY, f"no telephone numbers of {region} are known; phone:DE names Germany.")
    ids: list[numbers.NationalId] = []
    if "id" in named:
        ids = [each for country, its in numbers.IDS.items() for each in its if each.is_strong or country in countries]
    phones = numbers.Phones(regions) if "phone" in named else None
    if phones is None and not ids and not {"card", "iban"} & named:
        return []
    return [numbers.Numbers(phones, ids, has_cards="card" in named, has_ibans="iban" in named)]


def _names_in(kind: str) -> Iterator[str]:
    """Yield the names in a file: `names.csv`, whose only column has them, or `people.csv#name`."""
    from promptmill.files.disk import why
    from promptmill.jobs.inputs.any_format import objects_in

    name, _, column = kind.partition("#")
    path = Path(name).expanduser()
    try:
        path.stat()
        if path.suffix == ".txt":
            yield from path.read_text(encoding="utf-8", errors="replace").splitlines()
            return
        rows = list(objects_in(path))
    except OSError as error:
        raise config_error(KEY, f"{path.name}, the names to mask, cannot be read: {why(error)}.") from None
    header = list(dict.fromkeys(field for row in rows for field in row))
    if not column and len(header) == 1:
        column = header[0]
    if column not in header:
        said = (
            f"{path.name} has the columns {', '.join(header)[:200]}; name one of them: {name}#{(header or ['name'])[0]}"
        )
        raise config_error(KEY, f"{said}.")
    for row in rows:
        yield text_of(row.get(column))


def _detector(name: str) -> Detect:
    """Return a detector that calls the function `module:name` of another package. The function takes a text, and
    returns `(start, end, label)` of each value."""
    try:
        function: Callable[[str], Iterable[Any]] = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise config_error(KEY, f"{name} cannot be imported ({error}); set PYTHONPATH to its folder.") from None

    def detect(text: str) -> Iterator[ValueSpan]:
        try:
            found = [(int(start), int(end), str(label)) for start, end, label in function(text)]
        except Exception as error:  # noqa: BLE001 (code of another package: this text fails, and the others do not)
            said = f"The function {name} failed on this text ({type(error).__name__}), so nothing was sent."
            raise input_error(said) from None
        for start, end, label in found:
            if 0 <= start < end <= len(text):
                letters = "".join(one for one in label.upper() if one.isascii() and one.isalpha())[:LONGEST_LABEL]
                yield ValueSpan(start, end, letters if len(letters) > 1 else "VALUE")

    return detect
