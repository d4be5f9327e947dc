"""The models of a search for a better prompt: one labels reviews, the strong one writes prompts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from replies import answer, choose, status

LABELS = ("positive", "negative", "neutral")


def truth(number: int) -> str:
    return random.Random(number).choice(LABELS)


def models(*, helps: bool = True, lost: Callable[[str], bool] = lambda _: False) -> Any:
    """Return the replies of `strong`, which adds a word to the prompt for each task, and of another model, which is
    right on 60 % of the rows, and on 90 % with a definition, if that `helps`. `lost`: requests that fail."""

    def reply(seen: Any) -> Any:
        if lost(seen.prompt):
            return status(400, "No.", code="content_filter")
        if seen.json["model"] == "strong":
            base = re.search(r"<prompt-\w+>\n(.*?)\n</prompt-\w+>", seen.prompt, re.DOTALL)
            assert base is not None
            task = seen.prompt.rpartition("Your task: ")[2].partition("\n")[0]
            return answer(f"<prompt>{task} {base[1]}</prompt>")
        number = int(re.findall(r"review (\d+)", seen.prompt)[-1])
        skill = 0.9 if helps and "definition" in seen.prompt else 0.6
        is_right = random.Random(f"{number} of the rows").random() < skill
        return answer(truth(number) if is_right else next(one for one in LABELS if one != truth(number)))

    return choose(reply)
