"""What encoders share: the check of a known text."""

import pytest

np = pytest.importorskip("numpy")

from promptmill.core.errors import PromptmillError  # noqa: E402 (numpy may be missing)
from promptmill.features.embeddings.local.encoder import check  # noqa: E402


class Fixed:
    """An encoder that returns the same array for each text."""

    def __init__(self, vectors):
        self.vectors = np.array(vectors, np.float32)

    def version(self):
        return "fixed 1"

    temperature = 1.0

    def encode(self, texts, step=lambda _: None):
        return self.vectors


def test_a_vector_that_is_almost_the_known_one_is_good():
    check(Fixed([[0.601, 0.8]]), (0.6, 0.8), "")


@pytest.mark.parametrize("vectors", [[[0.7, 0.7]], [[float("nan"), 0.8]], [[0.6]], np.zeros((0, 2)), np.zeros((1, 0))])
def test_a_machine_that_computes_wrong_numbers_is_named(vectors):
    with pytest.raises(PromptmillError, match="fixed 1 returned another vector") as caught:
        check(Fixed(vectors), (0.6, 0.8), "Do this.")
    assert (caught.value.code, caught.value.hint) == ("engine_load_failed", "Do this.")
