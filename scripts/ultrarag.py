"""UltraRAG's own client and examples against promptmill, in an environment of their own: see docs/clients.md.

    scripts/ultrarag CHECKOUT                          # makes their environment in .venv-clients/ultrarag
    scripts/ultrarag CHECKOUT --python THEIR_PYTHON    # or takes the one that is there
    scripts/ultrarag CHECKOUT --only search_o1 calls   # these comparisons alone

CHECKOUT stays as it is: everything runs in a copy, where `promptmill install ultrarag` puts our launcher and the
examples' parameter files are filled in as their users do. First every example that needs no GPU runs against their own
generation server and against ours, and so do some 210 single calls (`tests/clients/ultrarag`): whatever differs without
being on the list of intended differences is a failure. Then some examples are built and run by the command line of
their client, on an endpoint that answers "echo: " and the question, and on the embedded model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "clients" / "ultrarag")]

from compare import compare  # noqa: E402 (found by the line above)

from upstream import Upstream  # noqa: E402 (found by the line above)

NEEDED = ROOT / "tests" / "clients" / "constraints-ultrarag.txt"
EXAMPLES = Path("examples", "experiments")
SAMPLE = {"temperature": 0, "max_tokens": 24}
CHAT = [
    {"role": "user", "content": "Hello, my name is Ada."},
    {"role": "assistant", "content": "Hello Ada!"},
    {"role": "user", "content": "What is the capital of France?"},
]
CALLS = """
import json, sys
from ultrarag.api import ToolCall, initialize
initialize(["generation"], server_root="servers", log_level="error")
ToolCall.generation.generation_init()
print(json.dumps(ToolCall.generation.multiturn_generate(messages=json.loads(sys.argv[1]))["ans_ls"]))
ToolCall.generation.vllm_shutdown()
"""


def their_python(given: Path | None) -> Path:
    """Return the Python of UltraRAG's client, made on the first use."""
    if given is not None:
        return given.absolute()
    folder = ROOT / ".venv-clients" / "ultrarag"
    windows = sys.platform == "win32"
    python = folder / ("Scripts/python.exe" if windows else "bin/python")
    if not (folder / "done").exists():
        print(f"making {folder.relative_to(ROOT)} from {NEEDED.relative_to(ROOT)}")
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", NEEDED], check=True)
        (folder / "done").touch()
    return python


class Checkout:
    """A copy of a checkout, worked on with UltraRAG's own client."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self.python = python
        paths = [str(python.parent), os.environ.get("PATH", "")]  # their client starts plain `python`
        self.environ = dict(os.environ) | {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(folder / "src")}
        self.environ |= {"NO_COLOR": "1", "COLUMNS": "160", "PYTHONUTF8": "1"}
        for name in ("PROMPTMILL_PYTHON", "PROMPTMILL_CONFIG", "LLM_API_KEY", "OPENAI_API_KEY"):
            self.environ.pop(name, None)

    def client(self, *arguments: str) -> str:
        """Run `ultrarag …` and return what it said."""
        return self.run("from ultrarag.client import main; main()", *arguments)

    def run(self, code: str, *arguments: str) -> str:
        """Run `code` with their Python; return what it printed. Ends the script when it fails."""
        done = subprocess.run(
            [self.python, "-c", code, *arguments],
            cwd=self.folder, env=self.environ, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        if done.returncode or "Cleanup tool generation_vllm_shutdown raised" in said:
            sys.exit(f"{said}\nFAILED: {' '.join(arguments)}")
        left = [
            process for process in psutil.process_iter() if "promptmill.features.ultrarag" in _command_line(process)
        ]
        if any(str(self.folder) in _command_line(process) for process in left):
            sys.exit(f"FAILED: {' '.join(arguments)} left a server behind")
        return done.stdout if code is CALLS else said

    def change(self, file: Path, change) -> None:
        """Change what a YAML file holds."""
        content = yaml.safe_load((self.folder / file).read_text(encoding="utf-8"))
        change(content)
        (self.folder / file).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def answers(self, example: str) -> list[str]:
        """Return `ans_ls` as the client's record of its last run holds it."""
        record = max(
            (self.folder / "output").glob(f"memory_*{example}*.json"), key=lambda file: file.stat().st_mtime_ns
        )
        steps = json.loads(record.read_text(encoding="utf-8"))
        return next(step["memory"]["memory_ans_ls"] for step in steps if "memory_ans_ls" in step["memory"])


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def prepare(checkout: Checkout) -> None:
    """Install our launcher, and give the examples the data that they need and the repository lacks."""
    command = [sys.executable, "-m", "promptmill", "install", "ultrarag", str(checkout.folder)]
    subprocess.run(command, check=True)
    for number in range(2):
        Image.new("RGB", (64, 48), ("red", "blue")[number]).save(checkout.folder / "data" / f"page_{number}.png")
    rows = [
        {"question": f"Which colour is page {n}?", "golden_answers": [colour], "image": [f"data/page_{n}.png"]}
        for n, colour in enumerate(("red", "blue"))
    ]
    write_lines(checkout.folder / "data" / "pages.jsonl", rows)
    write_lines(checkout.folder / "data" / "chat.jsonl", [{"turn": turn} for turn in CHAT])
    # the example's two steps, with data in front: alone it has no messages, and their client refuses to run it
    example = yaml.safe_load((checkout.folder / EXAMPLES / "multiturn_chat.yaml").read_text(encoding="utf-8"))
    example["servers"]["benchmark"] = "servers/benchmark"
    example["pipeline"].insert(0, "benchmark.get_data")
    (checkout.folder / EXAMPLES / "multiturn_chat_data.yaml").write_text(yaml.safe_dump(example), encoding="utf-8")


def declare(checkout: Checkout, fields: str) -> None:
    """Have the benchmark server declare the fields of a data set, as UltraRAG's documentation tells its users to."""
    source = checkout.folder / "servers" / "benchmark" / "src" / "benchmark.py"
    code = source.read_text(encoding="utf-8")
    source.write_text(re.sub(r'"benchmark->[^"]+"', f'"benchmark->{fields}"', code), encoding="utf-8")


def write_lines(file: Path, rows: list[dict]) -> None:
    """Write a JSONL file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Example(NamedTuple):
    """What a user changes for an example, and how many answers there will be."""

    data: dict
    fields: str
    answers: int


PAGES = {"q_ls": "question", "gt_ls": "golden_answers", "multimodal_path": "image"}
DATA = {
    "vanilla_llm": Example({"limit": 4}, "q_ls,gt_ls", 4),
    "vanilla_vlm": Example({"path": "data/pages.jsonl", "key_map": PAGES}, ",".join(PAGES), 2),
    "multiturn_chat_data": Example({"path": "data/chat.jsonl", "key_map": {"messages": "turn"}}, "messages", 1),
}


def lay_over(content: dict, values: dict) -> None:
    """Change `content` by `values`, block by block."""
    for key, value in values.items():
        if isinstance(value, dict) and key not in {"key_map", "sampling_params"}:
            lay_over(content[key], value)
        else:
            content[key] = value


@contextmanager
def copied(source: Path):
    """Copy a checkout to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ultrarag-") as folder:
        copy = Path(folder) / "UltraRAG"
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".git", ".venv", "node_modules", "output"))
        yield copy


def main() -> None:
    """Build and run the examples; print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", type=Path, help="the Python of UltraRAG's own environment")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="examples to compare, or `calls`")
    arguments = parser.parse_args()
    python = their_python(arguments.python)
    if wrong := compare(arguments.checkout, python, arguments.only):
        sys.exit(f"{wrong} differences that nobody intended")
    if arguments.only:
        return
    with Upstream() as endpoint, copied(arguments.checkout) as folder:
        checkout = Checkout(folder, python)
        prepare(checkout)
        backends = {
            "openai": {"backend": "openai", "backend_configs": {"openai": {"base_url": endpoint.url}}},
            "hf": {
                "backend": "hf",
                "sampling_params": SAMPLE,
                "backend_configs": {"hf": {"model_name_or_path": "smollm2-135m-instruct", "gpu_ids": ""}},
            },
        }
        for backend, generation in backends.items():
            for name in DATA:
                if (backend, name) == ("hf", "vanilla_vlm"):
                    continue  # the embedded model reads only text
                run_example(checkout, backend, name, generation, endpoint)
            run_chat(checkout, backend, generation)
    print("all examples ran")


def run_example(checkout: Checkout, backend: str, name: str, generation: dict, endpoint: Upstream) -> None:
    """`ultrarag build`, fill in, `ultrarag run`; check what came."""
    began, asked, example = time.monotonic(), len(endpoint.seen), DATA[name]
    declare(checkout, example.fields)
    checkout.client("build", str(EXAMPLES / f"{name}.yaml"))

    def change(content: dict) -> None:
        lay_over(content["generation"], generation)
        content["benchmark"]["benchmark"] |= example.data

    checkout.change(EXAMPLES / "parameter" / f"{name}_parameter.yaml", change)
    checkout.client("run", str(EXAMPLES / f"{name}.yaml"))
    answers = checkout.answers(name)
    report(backend, name, answers, time.monotonic() - began)
    assert len(answers) == example.answers
    assert all(answers)
    if backend == "openai":
        assert all(answer.startswith("echo: ") for answer in answers)
        sent = endpoint.seen[asked:]
        assert len(sent) == example.answers
        if name == "vanilla_vlm":
            assert all(b"data:image/png;base64," in request.raw for request in sent)


def run_chat(checkout: Checkout, backend: str, generation: dict) -> None:
    """The example as it is, built by their client; its conversation comes through their Python interface."""
    began = time.monotonic()
    checkout.client("build", str(EXAMPLES / "multiturn_chat.yaml"))
    checkout.change(Path("servers", "generation", "parameter.yaml"), lambda content: lay_over(content, generation))
    answers = json.loads(checkout.run(CALLS, json.dumps(CHAT)).splitlines()[-1])
    report(backend, "multiturn_chat (ToolCall)", answers, time.monotonic() - began)
    assert len(answers) == 1
    assert answers[0] == "echo: What is the capital of France?" if backend == "openai" else answers[0]


def report(backend: str, example: str, answers: list[str], seconds: float) -> None:
    """Print a line about an example."""
    first = " ".join(answers[0].split())
    print(f"{backend:7} {example:26} {len(answers)} answers in {seconds:4.0f} s, the first: {first:.70}")


if __name__ == "__main__":
    main()
