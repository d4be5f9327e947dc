"""Whether a new engine may load while the old one runs."""

from __future__ import annotations

import pytest

from promptmill.backends.engines import hardware
from promptmill.config.loading import Configuration
from promptmill.service import room


def _plan(backend="hf", **block):
    return Configuration({"backend": backend, "backend_configs": {backend: block}}).plan


@pytest.mark.parametrize(("old", "new"), [("openai", "openai"), ("openai", "hf"), ("vllm", "openai")])
def test_connections_fit_beside_anything(old, new):
    assert room.fits_beside(_plan(old), _plan(new))


@pytest.mark.parametrize(("old", "new", "fits"), [("0", "1", True), ("0,1", "1,2", False), ("2", "2", False)])
@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_engines_fit_beside_each_other_on_separate_gpus(backend, old, new, fits):
    assert room.fits_beside(_plan("hf", gpu_ids=old), _plan(backend, gpu_ids=new)) is fits


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model of so many bytes on a machine with so much free memory and no accelerator."""

    def of(size: int, free: int | None, *, accelerator: bool = False):
        monkeypatch.setattr(hardware, "free_memory", lambda: free)
        monkeypatch.setattr(room, "_has_accelerator", lambda: accelerator)
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(size)
        return _plan(model_name_or_path=str(tmp_path))

    return of


GIB = 2**30


def test_on_the_cpu_an_engine_fits_when_memory_is_ample(model):
    assert room.fits_beside(_plan(), model(GIB, 8 * GIB))
    assert not room.fits_beside(_plan(), model(GIB, 4 * GIB))


def test_where_little_is_known_nothing_fits(model):
    assert not room.fits_beside(_plan(), model(GIB, None)), "free memory unknown"
    assert not room.fits_beside(_plan(), model(0, 64 * GIB)), "no weights found"
    model(GIB, 64 * GIB)
    assert not room.fits_beside(_plan(), _plan(model_name_or_path="hub/name")), "size unknown"


def test_an_accelerator_is_not_shared_without_gpu_ids(model):
    assert not room.fits_beside(_plan(), model(GIB, 64 * GIB, accelerator=True))


def test_free_memory_is_read_where_the_system_tells_it():
    free = hardware.free_memory()
    assert free is None or free > 2**20
