"""Replies of three models that label texts by the number at their end: two small ones that err, and a strong one."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from replies import answer, choose

LABELS = ("positive", "negative", "neutral")
_PRICES = {"small": (0.1, 0.3), "small-2": (0.1, 0.3), "strong": (10, 30)}


def label(model: str, text: str) -> tuple[str, float]:
    """Return what a model answers, and its probability: the small ones are wrong where they are unsure."""
    number = int(text.rpartition(" ")[2])
    chance = random.Random(number)
    truth, sure = chance.choice(LABELS), chance.betavariate(4, 1)
    wrong = chance.random() > 0.6 + 0.4 * sure
    if model == "strong" or not wrong or (model == "small-2" and number % 3):
        return truth, sure
    return next(one for one in LABELS if one != truth), sure * 0.7


def labellers(*, probabilities: bool = True, varied: bool = False) -> Callable[[Any], Any]:
    """Return the replies of the models. `varied`: repeats of an unsure answer differ."""

    def reply(seen: Any) -> Any:
        body = seen.json
        text, sure = label(body["model"], seen.prompt)
        if varied and body.get("temperature") == 1.0 and seen.number % 2 and sure < 0.7:
            text = LABELS[seen.number % 3]
        if not (body.get("logprobs") and probabilities):
            return answer(text)
        return answer(text, logprobs={"content": [{"token": text, "logprob": math.log(sure)}]})

    return choose(reply)


def named(bench: Any) -> tuple[str, str]:
    """Return the options that name the models, with their prices."""
    block = {"base_url": bench.upstream.url, "retries": 3, "base_delay": 0.01, "concurrency": 32}
    models = {
        name: {"openai": {**block, "model_name": name}, "price": {"input": read, "output": written}}
        for name, (read, written) in _PRICES.items()
    }
    return "--set", f"models={json.dumps(models)}"


def sent(bench: Any) -> Counter[str]:
    """Count the requests by model."""
    return Counter(seen.json["model"] for seen in bench.upstream.seen)
