"""`openai_batches.py PROGRAM`: three questions as a batch of litellm, inspect_ai or curator; prints the answers.

The server and the token are in OPENAI_BASE_URL and OPENAI_API_KEY.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

BASE, KEY = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
TEXTS = [f"hi {n}" for n in range(3)]


def litellm_answers() -> list[str]:
    import litellm

    options = {"custom_llm_provider": "openai", "api_base": BASE, "api_key": KEY}
    lines = [
        {
            "custom_id": text,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": text}]},
        }
        for text in TEXTS
    ]
    path = Path(tempfile.mkdtemp()) / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with path.open("rb") as data:
        file = litellm.create_file(file=data, purpose="batch", **options)
    batch = litellm.create_batch(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id, metadata={"a": "b"}, **options
    )
    while (now := litellm.retrieve_batch(batch.id, **options)).status != "completed":
        assert now.status in {"validating", "in_progress", "finalizing"}, now
        time.sleep(0.2)
    assert [each.id for each in litellm.list_batches(**options)] == [batch.id]
    found = map(json.loads, litellm.file_content(file_id=now.output_file_id, **options).text.splitlines())
    answers = {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in found}
    return [answers[text] for text in TEXTS]


def inspect_answers(*, responses: bool) -> list[str]:
    from inspect_ai.model import BatchConfig, GenerateConfig, get_model

    batch = BatchConfig(size=3, send_delay=0.5, tick=0.2)
    model = get_model(
        "openai/m", base_url=BASE, api_key=KEY, responses_api=responses, config=GenerateConfig(batch=batch)
    )

    async def answers() -> list[str]:
        return [each.completion for each in await asyncio.gather(*map(model.generate, TEXTS))]

    return asyncio.run(answers())


def curator_answers() -> list[str]:
    from bespokelabs import curator

    class Asker(curator.LLM):
        def prompt(self, row: dict) -> str:
            return row["text"]

        def parse(self, row: dict, response: str) -> dict:
            return {"text": row["text"], "answer": response}

    asker = Asker(
        model_name="m",
        batch=True,
        backend="openai",
        backend_params={"base_url": BASE, "api_key": KEY, "batch_size": 3, "batch_check_interval": 1},
    )
    found = asker([{"text": text} for text in TEXTS])
    rows = getattr(found, "dataset", found)
    answers = {row["text"]: row["answer"] for row in rows}
    return [answers[text] for text in TEXTS]


if __name__ == "__main__":
    answers = {
        "litellm": litellm_answers,
        "inspect_ai": lambda: inspect_answers(responses=False),
        "inspect_ai-responses": lambda: inspect_answers(responses=True),
        "curator": curator_answers,
    }[sys.argv[1]]()
    print(json.dumps(answers))
