"""Datasets of the Hugging Face Hub: `hf://datasets/owner/name`, with `@revision` and a file, a folder or a split.

    hf://datasets/acme/mails              the only split of the dataset
    hf://datasets/acme/mails/train        a split, as the card or the names of the files define it
    hf://datasets/acme/mails/data/a.csv   a file

A dataset is read at the commit it had when the job began. The output is one commit with a data file and the dataset's
card. huggingface_hub supplies the credentials: `HF_TOKEN`, or a login by `hf auth login`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from promptmill.core.errors import Code, PromptmillError, first_line, input_error
from promptmill.core.wording import did_you_mean, listed
from promptmill.files.format_table import writing
from promptmill.files.path_formats import plain, reading
from promptmill.system.installation import adding

SCHEME = "hf://"
_URL = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(?:/(?P<path>.*))?")
_METADATA = re.compile(r"---\r?\n(.*?)\n---(?:\s|$)", re.DOTALL)
_SHARD = re.compile(r"(?:^|.*/)(\w+(?:\.\w+)*)-\d{5}-of-\d{5}\.")
# The words by which the library `datasets` recognizes splits.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NO_ROWS = ("dataset_infos.json", "metadata.json")
_DATA = "data/{}-00000-of-00001.parquet"  # the file name that `datasets` uses in `push_to_hub`
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN."
_MISSING = frozenset(
    {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", "RemoteEntryNotFoundError"}
)
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A location in a dataset: its repository, its revision, and a path."""

    repo: str
    revision: str = ""
    """A branch, a tag, a commit or a special reference; `""`: the main branch."""
    path: str = ""
    """A file, a folder, a pattern or a split; `""`: the whole dataset."""

    @classmethod
    def of(cls, url: str) -> Dataset:
        """Parse a URL. Raises `PromptmillError` (`invalid_input`).

        >>> Dataset.of("hf://datasets/acme/mails@v1/train")
        Dataset(repo='acme/mails', revision='v1', path='train')
        """
        found = _URL.fullmatch(url.strip())
        if found is None:
            raise input_error(
                f"{url:.100} is no dataset; write hf://datasets/OWNER/NAME, perhaps with /SPLIT or /FILE."
            )
        return cls(found["repo"], found["revision"] or "", (found["path"] or "").strip("/"))

    @property
    def url(self) -> str:
        """The URL."""
        at, path = self.revision and f"@{self.revision}", self.path and f"/{self.path}"
        return f"{SCHEME}datasets/{self.repo}{at}{path}"

    @property
    def file_name(self) -> str:
        """The name of the local file for an output: the name of the data file or, for a split, that of the dataset."""
        name = PurePosixPath(self.path).name
        return f"{self.repo.partition('/')[2]}.parquet" if _SHARD.match(name) else name

    @property
    def page(self) -> str:
        """The URL of the dataset without a revision or a path, for messages."""
        return f"{SCHEME}datasets/{self.repo}"


def is_dataset(url: str) -> bool:
    """Return whether a URL names a dataset of the Hub."""
    return url.lower().startswith(f"{SCHEME}datasets/")


def pinned(url: str, before: str, say: Callable[[str], None]) -> str:
    """Return the URL of a dataset at the commit with which its job began.

    `before`: the URL with this commit, `""` for a new job. If the dataset has changed since, `say` is called with a
    note. Raises `PromptmillError`.
    """
    wanted = Dataset.of(url)
    with _errors(wanted):
        now = _api().dataset_info(wanted.repo, revision=wanted.revision or None).sha
    newest = replace(wanted, revision=now)
    if not before or before == newest.url:
        return newest.url
    say(
        f"{wanted.page} has changed: the job reads commit {Dataset.of(before).revision[:8]}, with which it began; "
        f"{replace(wanted, revision=now[:8]).url} reads the newest"
    )
    return before


def files_of(url: str) -> list[str]:
    """Return the URLs of the data files at a URL that names a commit. Raises `PromptmillError` (`invalid_input`)."""
    place = Dataset.of(url)
    with _errors(place):
        api = _api()
        names = sorted(
            entry.path
            for entry in api.list_repo_tree(place.repo, recursive=True, revision=place.revision, repo_type="dataset")
            if hasattr(entry, "size")
        )
        splits = _splits(_card(api, place) if CARD in names else {}, names)
    return [replace(place, path=name).url for name in _chosen(place, names, splits)]


def _chosen(place: Dataset, names: Sequence[str], splits: Mapping[str, Sequence[str]]) -> Sequence[str]:
    if place.path in names:
        return [place.path]
    if any(letter in place.path for letter in "*?["):
        found = fnmatch.filter(names, place.path)
    elif place.path in splits:
        return splits[place.path]
    else:
        found = [name for files in splits.values() for name in files if _is_below(name, place.path)]
        inside = {split: files for split, files in splits.items() if set(files) & set(found)}
        if len(inside) > 1:
            shown = [replace(place, revision="", path=split).url for split in inside]
            raise input_error(f"{place.page} has the splits {listed(list(inside))}; name one of them: {shown[0]}")
    if not found:
        if not splits:
            raise input_error(
                f"{place.page} has no files of rows; perhaps hf://datasets/{place.repo}@refs/convert/parquet has."
            )
        meant = did_you_mean(place.path, splits, f"it has {listed(list(splits))}.")
        raise input_error(f"{place.page} has no file, folder or split {place.path[:80]!r}; {meant}")
    return list(dict.fromkeys(found))


def _is_below(name: str, folder: str) -> bool:
    return not folder or PurePosixPath(name).is_relative_to(folder)


def _splits(card: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the data files of each split. With several configurations, a split is named `configuration/split`."""
    rows = [name for name in names if Path(name).name not in _NO_ROWS and not name.startswith(".")]
    rows = [name for name in rows if (known := reading(Path(name))) is not None and not known.whole]
    found: dict[str, list[str]] = {}
    given = card.get("configs")
    configs = [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
    configs = [each for each in configs if each.get("data_files") or each.get("data_dir")]
    for config in configs:
        prefix = f"{config.get('config_name')}/" if len(configs) > 1 else ""
        for split, patterns in _patterns_of(config, rows):
            matched = [name for name in rows if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
            if matched:
                found.setdefault(prefix + split, []).extend(matched)
    if found:
        return found
    for name in rows:
        found.setdefault(_split_of(name), []).append(name)
    return found


def _patterns_of(config: Mapping[str, Any], rows: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the splits of a configuration, each with patterns of files. `rows`: the data files of the dataset."""
    folder = str(config.get("data_dir") or "")
    if files := config.get("data_files"):
        for split, patterns in _data_files(files):
            yield split, [str(PurePosixPath(folder, pattern)) for pattern in patterns]
        return
    for name in rows:
        if _is_below(name, folder):
            yield _split_of(str(PurePosixPath(name).relative_to(folder))), [glob.escape(name)]


def _data_files(value: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the splits in a card's configuration, each with its patterns of files."""
    match value:
        case str() | [str(), *_]:
            yield "train", _patterns(value)
        case [*entries]:
            for entry in entries:
                if isinstance(entry, Mapping):
                    yield str(entry.get("split", "train")), _patterns(entry.get("path"))
        case Mapping():
            for split, path in value.items():
                yield str(split), _patterns(path)


def _patterns(value: Any) -> list[str]:
    patterns = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [pattern.removeprefix("./") for pattern in patterns if isinstance(pattern, str)]


def _split_of(name: str) -> str:
    """Return the split to which a file belongs, according to the file's name.

    >>> [_split_of(name) for name in ("data/unsupervised-00000-of-00003.parquet", "dev.csv", "rows.jsonl")]
    ['unsupervised', 'validation', 'train']
    """
    if shard := _SHARD.match(name):
        return shard[1]
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, known in _WORDS.items() if any(word in known for word in words)), "train")


def _card(api: Any, place: Dataset) -> Mapping[str, Any]:
    """Return the metadata of a dataset's card; `{}` if the card is unreadable."""
    path = api.hf_hub_download(place.repo, CARD, repo_type="dataset", revision=place.revision)
    metadata = _METADATA.match(Path(path).read_text("utf-8", "replace"))
    with contextlib.suppress(yaml.YAMLError):
        found = yaml.safe_load(metadata[1]) if metadata is not None else {}
        return found if isinstance(found, dict) else {}
    return {}


# ---- the output


def output_place(url: str) -> Dataset:
    """Return the data file for an output. A split gets the file name that the library `datasets` uses for it.

    Raises `PromptmillError`.
    """
    place = Dataset.of(url)
    if place.revision:
        raise input_error(f"{url:.100}: an output goes into the main branch; leave @{place.revision} out.")
    if place.path and writing(plain(Path(place.path))) is not None:
        return place
    if "/" in place.path or "." in place.path:
        raise input_error(f"{url:.100} is no data file; name one, or a split: {place.page}/train.")
    return replace(place, path=_DATA.format(place.path or "train"))


def check_may_write(place: Dataset) -> None:
    """Raise `PromptmillError` if the token is missing, is read-only, or belongs to another user than the dataset."""
    with _errors(place):
        user = _api().whoami()
    token = user.get("auth", {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise PromptmillError(
            Code.UNAUTHORIZED,
            f"The token {token.get('displayName', '')!r} of the Hub only reads.",
            "Use one that writes.",
        )
    owner, own = place.repo.partition("/")[0], user.get("name", "")
    names = [own, *(each.get("name", "") for each in user.get("orgs") or ())]
    if owner not in names:
        raise input_error(
            f"{place.page} belongs to {owner}; you are {own} on the Hub: name {listed(names)} as the owner."
        )


def digest(place: Dataset) -> str | None:
    """Return the digest of the data file's content; None if the file is missing. Raises `PromptmillError`."""
    with _errors(place), contextlib.suppress(FileNotFoundError):
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            found = _api().get_paths_info(place.repo, place.path, repo_type="dataset")
        except RepositoryNotFoundError:
            return None
        return None if not found else found[0].lfs.sha256 if found[0].lfs else found[0].blob_id
    return None


def digests_of(file: Path) -> Sequence[str]:
    """Return the possible results of `digest` for a data file with the content of `file`. Raises `OSError`."""
    size = file.stat().st_size
    lfs, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            lfs.update(block)
            git.update(block)
    return lfs.hexdigest(), git.hexdigest()


def commit(place: Dataset, file: Path, title: str, card: Callable[[str], str]) -> None:
    """Write the data file and the card in one commit; do nothing if they exist unchanged. A new dataset is private.

    `card` converts the present card (`""` if there is none) to the new card. Raises `PromptmillError`.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import EntryNotFoundError

    with _errors(place):
        api = _api()
        api.create_repo(place.repo, repo_type="dataset", private=True, exist_ok=True)
        head = api.dataset_info(place.repo).sha
        before = ""
        with contextlib.suppress(EntryNotFoundError):
            path = api.hf_hub_download(place.repo, CARD, repo_type="dataset", revision=head)
            before = Path(path).read_text("utf-8")
        api.create_commit(
            place.repo,
            [CommitOperationAdd(place.path, str(file)), CommitOperationAdd(CARD, card(before).encode())],
            commit_message=title,
            repo_type="dataset",
            parent_commit=head,  # makes the commit fail if another user has changed the card
        )


def set_quiet() -> None:
    """Switch off telemetry and progress bars of huggingface_hub. Call it before the import of huggingface_hub."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _api() -> Any:
    set_quiet()
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise PromptmillError(Code.MISSING_DEPENDENCY, "hf:// URLs need huggingface-hub.", adding("hub")) from None
    return HfApi()


@contextlib.contextmanager
def _errors(place: Dataset) -> Iterator[None]:
    """Convert the errors of the Hub to `PromptmillError`."""
    try:
        yield
    except PromptmillError:
        raise
    except Exception as error:  # noqa: BLE001 (errors of huggingface_hub, httpx, …)
        raise _known(error, place) from None


def _known(error: Exception, place: Dataset) -> PromptmillError:
    kind, page = type(error).__name__, place.page
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "LocalTokenNotFoundError":
        return PromptmillError(Code.UNAUTHORIZED, "There is no token for the Hugging Face Hub.", _LOGIN)
    if kind == "GatedRepoError":
        return PromptmillError(Code.UNAUTHORIZED, f"{page} is gated; ask for access on its page.", _LOGIN)
    if status == 401:
        problem = f"{page} is private or missing, or the Hub does not know your token."
        return PromptmillError(Code.UNAUTHORIZED, problem, _LOGIN)
    if status == 403:
        return PromptmillError(Code.UNAUTHORIZED, f"Your token may not use {page}: {first_line(error)}.", _LOGIN)
    if kind in _MISSING:
        what = f"{page}@{place.revision}" if kind == "RevisionNotFoundError" else page
        return input_error(f"There is nothing at {what}; a private dataset needs a token. {_LOGIN}")
    if kind == "HFValidationError":
        return input_error(f"{page}: {first_line(error)}.")
    return PromptmillError(Code.STORAGE, f"{page} cannot be used: {first_line(error)}.", "Try again.")
