"""transformers' own generate in padded batches of 8, in a process of its own, as it comes: driven by `hf_batching`.

Batch by batch in the order of arrival; a batch takes as long as its longest answer. It prints a line when the model is
loaded, then for each line `PROMPTS` on stdin the tokens per second that were asked for.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from benchmarks.hf_batching import BATCH, workload


class Padded:
    """The model, and batches through it."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from promptmill.backends.engines import embedded_model, hardware

        dtype = torch.bfloat16 if hardware.has_native_bfloat16(torch) else torch.float32
        torch.set_num_threads(hardware.cores())
        folder = embedded_model.model_folder(lambda _: None)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def run(self, work: list[tuple[str, int]]) -> float:
        """Return tokens per second that were asked for."""
        started = time.perf_counter()
        for first in range(0, len(work), BATCH):
            batch = work[first : first + BATCH]
            longest = max(tokens for _, tokens in batch)
            texts = [self._text(text) for text, _ in batch]
            inputs: Any = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            made = self._model.generate(**inputs, do_sample=False, max_new_tokens=longest, min_new_tokens=longest)
            for row, (_, tokens) in enumerate(batch):
                self._tokenizer.decode(made[row, inputs["input_ids"].shape[1] :][:tokens], skip_special_tokens=True)
        return sum(tokens for _, tokens in work) / (time.perf_counter() - started)

    def _text(self, prompt: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text


def main() -> None:
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.nice(5)  # as promptmill runs an engine
    padded = Padded()
    results.write("ready\n")
    for line in sys.stdin:
        results.write(f"{padded.run(workload(int(line)))}\n")


if __name__ == "__main__":
    main()
