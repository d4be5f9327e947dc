"""What an outcome keeps."""

from __future__ import annotations

from dataclasses import asdict

from promptmill.core.outcome import Completion, Usage


def test_an_answer_keeps_all_but_what_it_took() -> None:
    answer = Completion(
        "text",
        "stop",
        Usage(1, 2),
        "reasoning",
        ({"id": "1"},),
        3,
        4.0,
        {"content": []},
        {"body": {"id": "1"}},
        "model",
        0.5,
        ("text", "other"),
    )
    assert None not in asdict(answer).values()
    assert asdict(answer.after(5, 6.0)) == asdict(answer) | {"attempts": 5, "latency_s": 6.0}
