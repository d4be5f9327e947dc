"""vLLM alone, in a process of its own: `python -m benchmarks.vllm_contestant same|own`, driven by `vllm_engine`.

`same` has the settings that promptmill chooses, `own` vLLM's threads, processes and number format, uncompiled as well:
compiled in bfloat16, vLLM 0.32 answers wrongly on CPUs (the capital of France is "L'Étoile, la Marseillaise"). It
prints the seconds until it was ready, then for each line `PROMPTS TOKENS` on stdin the tokens per second of `LLM.chat`.
"""

from __future__ import annotations

import os
import sys
import time

from benchmarks.contestant import prompt


def main() -> None:
    started = time.perf_counter()
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM logs on stdout
    os.nice(5)  # as promptmill runs an engine
    from promptmill.backends.engines import embedded_model
    from promptmill.backends.engines.model_loading import Location
    from promptmill.backends.engines.vllm import _set_up_libraries

    folder = str(embedded_model.model_folder(lambda _: None))
    if sys.argv[1] == "same":
        _set_up_libraries(on_cpu=True)
        from promptmill.backends.engines.vllm.startup import engine_arguments

        options = {"model_name_or_path": folder, "gpu_ids": None}
        arguments = engine_arguments(options, Location(folder), on_cpu=True)
    else:
        arguments = {"model": folder, "enforce_eager": True}
    from vllm import LLM, SamplingParams

    # By default it takes nine tenths of the memory, or fails where less is free: this much it gets in either case.
    engine = LLM(**arguments, kv_cache_memory_bytes=2 << 30)
    results.write(f"{time.perf_counter() - started}\n")
    for line in sys.stdin:
        count, tokens = map(int, line.split())
        chats = [[{"role": "user", "content": prompt(index)}] for index in range(count)]
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        began = time.perf_counter()
        made = engine.chat(chats, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        assert sum(len(one.outputs[0].token_ids) for one in made) == count * tokens
        results.write(f"{count * tokens / seconds}\n")


if __name__ == "__main__":
    main()
