"""UltraRAG's examples and single calls against its own generation server and against promptmill, side by side.

The same client, the same endpoint, which answers the same to the same request; compared are every step's memory of
every pipeline, every call's answers, and the bodies of all requests. Each pipeline and each call has a path of its own
at the endpoint, so that a request belongs to the one whose path it has, however late it comes. A difference that
`intended` does not name is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "support")]

from calls import IMAGES, cases  # noqa: E402 (found by the line above)
from intended import DIFFERENCES, ONLY_OURS_ENDS  # noqa: E402
from model import deterministic  # noqa: E402
from pipelines import TEMPLATES, pipelines  # noqa: E402

from upstream import Upstream  # noqa: E402

SERVER = Path("servers", "generation", "src", "generation.py")
COLOURS = ("red", "blue")


def compare(source: Path, python: Path, only: list[str]) -> int:
    """Print the tables; return how many differences nobody intended. `only` names pipelines, or `calls`."""
    with tempfile.TemporaryDirectory(prefix="ultrarag-") as folder, Upstream(deterministic()) as endpoint:
        theirs, ours = (_copy(source, Path(folder) / side, endpoint) for side in ("theirs", "ours"))
        subprocess.run([sys.executable, "-m", "promptmill", "install", "ultrarag", str(ours)], check=True)
        found = 0
        chosen = [example for example in pipelines(endpoint.url) if not only or example["name"] in only]
        if chosen:
            found += _compared(
                "pipelines", chosen, *(_run("pipelines", chosen, side, python, endpoint) for side in (theirs, ours))
            )
        if not only or "calls" in only:
            single = cases(endpoint.url)
            found += _compared(
                "calls", single, *(_run("calls", single, side, python, endpoint) for side in (theirs, ours))
            )
        return found


def _url(endpoint: Upstream, mark: str) -> str:
    """Return the `base_url` of the path `mark`, which lists the endpoint's models too."""
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in endpoint.models]
    endpoint.gets[f"/{mark}/v1/models"] = {"object": "list", "data": listed}
    return f"http://127.0.0.1:{endpoint.port}/{mark}/v1"


def _copy(source: Path, folder: Path, endpoint: Upstream) -> Path:
    ignored = shutil.ignore_patterns(".git", ".venv", "node_modules", "output")
    shutil.copytree(source, folder, ignore=ignored)
    shutil.copy(HERE / "retriever.py", folder / "servers" / "retriever" / "src" / "retriever.py")
    prompts = folder / "servers" / "prompt" / "parameter.yaml"
    prompts.write_text(
        yaml.safe_dump(yaml.safe_load(prompts.read_text(encoding="utf-8")) | TEMPLATES), encoding="utf-8"
    )
    server = folder / "servers" / "generation" / "parameter.yaml"
    content = yaml.safe_load(server.read_text(encoding="utf-8"))
    content["backend_configs"]["openai"]["base_url"] = _url(endpoint, f"{folder.name}-file")
    server.write_text(yaml.safe_dump(content), encoding="utf-8")
    data = folder / "data"
    for name, colour in zip(IMAGES, COLOURS, strict=True):
        Image.new("RGB", (64, 48), colour).save(folder / name)
    Image.new("RGB", (40, 30), "green").save(data / "photo.jpg")
    shutil.copy(folder / IMAGES[0], data / "page")
    for suffix in ("bmp", "tiff", "gif", "webp"):
        Image.new("RGB", (40, 30), "green").save(data / f"photo.{suffix}")
    (data / "broken.png").write_bytes((folder / IMAGES[0]).read_bytes()[:40])
    (data / "text.png").write_text("not an image", encoding="utf-8")
    (data / "empty.png").touch()
    (data / "drawing.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>', encoding="utf-8"
    )
    answers = [{"golden_answers": [colour], "image": [name]} for name, colour in zip(IMAGES, COLOURS, strict=True)]
    _write(data / "pages.jsonl", [{"question": f"Which colour is page {n}?", **row} for n, row in enumerate(answers)])
    _write(data / "pages_corpus.jsonl", [{"id": n, "image_path": name} for n, name in enumerate(IMAGES)])
    options = {"golden_answers": ["B"], "choices": ["one", "two", "three"]}
    _write(data / "choices.jsonl", [{"question": f"Which is number {n}?", **options} for n in range(3)])
    return folder


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _run(
    kind: str, parts: list[dict[str, Any]], folder: Path, python: Path, endpoint: Upstream
) -> dict[str, dict[str, Any]]:
    """Run pipelines or calls in a checkout; return what became of each, with the bodies it sent."""
    marks = {part["name"]: f"{folder.name}-{number}" for number, part in enumerate(parts)}
    marked = [json.loads(json.dumps(part).replace(endpoint.url, _url(endpoint, marks[part["name"]]))) for part in parts]
    environ = dict(os.environ) | {"PYTHONPATH": str(folder / "src"), "NO_COLOR": "1", "PYTHONUTF8": "1"}
    environ["PATH"] = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
    for name in ("PROMPTMILL_PYTHON", "PROMPTMILL_CONFIG", "LLM_API_KEY", "OPENAI_API_KEY"):
        environ.pop(name, None)
    file = folder / "job.json"
    file.write_text(json.dumps({kind: marked, "path": SERVER.as_posix()}), encoding="utf-8")
    found: dict[str, dict[str, Any]] = {}
    before = len(endpoint.seen)  # a path names a number, which pipelines and calls both have
    with (
        (folder / "driver.log").open("wb") as log,
        subprocess.Popen(
            [python, HERE / "driver.py", file], cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=log
        ) as driver,
    ):
        for line in driver.stdout:
            try:
                part = json.loads(line)
            except ValueError:
                continue  # of a server that prints
            found[part["name"]] = part
    if driver.returncode:
        sys.exit(f"{(folder / 'driver.log').read_text(errors='replace')[-4000:]}\nFAILED: the driver in {folder}")
    bodies: dict[str, list[dict[str, Any]]] = {}
    for seen in endpoint.seen[before:]:
        bodies.setdefault(seen.target.split("/")[1], []).append(_canonical(seen.json))
    return {name: part | {"bodies": bodies.get(marks[name], [])} for name, part in found.items()}


def _canonical(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body as endpoints read it: a lone stop string is a list of one, and 0.0 is 0."""
    found = _plain(body)
    return {**found, "stop": [found["stop"]]} if isinstance(found.get("stop"), str) else found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _compared(kind: str, parts: list[dict[str, Any]], theirs: dict[str, Any], ours: dict[str, Any]) -> int:
    equal = wrong = 0
    told = set()
    for part in parts:
        name = part["name"]
        difference = _difference(theirs.get(name, {}), ours.get(name, {}))
        if kind == "pipelines":
            steps, bodies = len(ours[name].get("steps") or ()), len(ours[name]["bodies"])
            times = f"{theirs[name]['seconds']:6.1f} s {ours[name]['seconds']:6.1f} s"
            print(f"{name:26} {steps:3} steps {bodies:3} requests {times}  {difference or _alike(ours[name])}")
        equal += not difference
        reason = DIFFERENCES.get(name)
        if difference.startswith("ours alone ends") and name not in ONLY_OURS_ENDS:
            wrong += 1
            print(f"NOT INTENDED: {name}: {difference}")
        elif bool(difference) != bool(reason):
            wrong += 1
            print(f"NOT INTENDED: {name}: {difference or 'equal now; take it out of the list'}")
        elif reason:
            told.add(f"  {name}: {reason}")
    print(f"{kind}: {equal} of {len(parts)} equal; {len(told)} differ on purpose")
    print("\n".join(sorted(told)))
    return wrong


def _alike(found: dict[str, Any]) -> str:
    return f"equal: both end with {found['error'].splitlines()[0]:.70}" if "error" in found else "equal"


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Return where two runs part, `""` when they are equal or fail alike."""
    if ("error" in theirs) != ("error" in ours):
        side = "theirs" if "error" in theirs else "ours"
        return f"{side} alone ends with {(theirs if side == 'theirs' else ours)['error'].splitlines()[0]:.200}"
    pairs = zip(theirs.get("steps") or (), ours.get("steps") or (), strict=False)
    first = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if first is not None:
        return f"step {first} ({ours['steps'][first]['step']}) has another memory"
    if theirs.get("steps") != ours.get("steps"):
        return f"{len(theirs['steps'])} steps there, {len(ours['steps'])} here"
    if theirs.get("answers") != ours.get("answers"):
        return f"answers {theirs.get('answers')!s:.150} there, {ours.get('answers')!s:.150} here"
    if "error" not in ours and _unordered(theirs) != _unordered(ours):
        return "the bodies of requests differ"
    return ""


def _unordered(found: dict[str, Any]) -> list[str]:
    return sorted(json.dumps(body, sort_keys=True) for body in found["bodies"])
