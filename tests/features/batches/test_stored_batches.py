"""The batches in a job's database, which may come from anywhere."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from promptmill.features.batches.stored_batches import AtProvider


@pytest.mark.parametrize("name", ["", "batch_1", "files/abc-1", "projects/p/locations/eu/batches/1", "a.b", "..a"])
def test_an_id_of_a_provider_is_kept(name):
    assert AtProvider(id=name, file_id=name).id == name


@pytest.mark.parametrize(
    "name", ["..", "../models/own", "a/../b", "./x", "a?x=1", "a#b", "%2e%2e/x", "a\\..\\b", "a b"]
)
def test_an_id_that_leads_a_url_elsewhere_is_no_id(name):
    with pytest.raises(ValidationError):
        AtProvider(id=name)
    with pytest.raises(ValidationError):
        AtProvider(file_id=name)
