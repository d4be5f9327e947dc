"""Keep a job of this version, stopped in the middle, for later versions to go on with.

    .venv/bin/python scripts/keep_job.py

Run for each release. tests/jobs/test_releases.py goes on with every job below tests/jobs/releases/.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import promptmill

KEPT = Path(__file__).resolve().parents[1] / "tests" / "jobs" / "releases"
ROWS = 8
ANSWERED = 5  # the last of them with a failure; what comes behind them gets no answer
CONFIGURATION = """\
backend: openai
backend_configs:
  openai: {base_url: http://release.invalid/v1, model_name: m, api_key: k, concurrency: 3, base_delay: 0.01}
system_prompt: You are brief.
sampling_params: {temperature: 0, max_tokens: 50}
"""


class Endpoint(BaseHTTPRequestHandler):
    """Answers the first rows, refuses one, and leaves the rest waiting. It stands as the proxy of `release.invalid`."""

    settled = threading.Event()
    ended = threading.Event()

    def do_POST(self) -> None:
        """Answer."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        row = int(asked["messages"][-1]["content"].split()[-1])
        if row >= ANSWERED:
            Endpoint.ended.wait(60)
            return
        refused = row == ANSWERED - 1
        choice = {"message": {"role": "assistant", "content": f"kept {row}"}, "finish_reason": "stop"}
        found = {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
        body = json.dumps({"error": {"message": "no such thing"}} if refused else found).encode()
        self.send_response(400 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def keep() -> Path:
    """Make the job and keep its files; return where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = "".join(json.dumps({"id": at, "prompt": f"Say row {at}"}) + "\n" for at in range(ROWS))
        (folder / "in.jsonl").write_text(rows)
        (folder / "parameter.yaml").write_text(CONFIGURATION)
        proxy = f"http://127.0.0.1:{server.server_port}"
        environment = os.environ | {"http_proxy": proxy, "no_proxy": "", "PROMPTMILL_CONFIG": ""}
        command = [sys.executable, "-m", "promptmill"]
        job = subprocess.Popen([*command, "bulk", "in.jsonl", "out.jsonl", "--quiet"], cwd=folder, env=environment)
        while job.poll() is None:
            told = subprocess.run(
                [*command, "jobs", "out.jsonl", "--json"], cwd=folder, env=environment, capture_output=True, check=False
            )
            if told.returncode == 0 and json.loads(told.stdout)["done"] == ANSWERED:
                job.send_signal(signal.SIGINT)
                break
        job.wait()
        Endpoint.ended.set()
        target = KEPT / promptmill.__version__
        shutil.rmtree(target, ignore_errors=True)
        (target / ".promptmill" / "out.jsonl.job").mkdir(parents=True)
        for file in ("in.jsonl", "parameter.yaml", ".promptmill/out.jsonl.job/job.db"):
            shutil.copyfile(folder / file, target / file)
    return target


if __name__ == "__main__":
    print(keep())
