"""The engine settings that a call may set; all others are reserved for the operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptmill.config.loading import TRUST_SWITCH
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import config_error
from promptmill.core.wording import close_matches

# vLLM's arguments that a call may set: numbers, switches and names from closed lists, which change how much, how fast
# and in which number format the model computes. All others are reserved for the operator, including those of later
# versions of vLLM: they may import code (`spec_model: "module.Class"`), read and write files, or open connections.
ENGINE_ARGUMENTS = frozenset(
    {
        # how much at once, how long, from which memory
        *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens", "max_logprobs"),
        *("kv_cache_memory_bytes", "kv_cache_dtype", "block_size", "num_gpu_blocks_override", "cpu_offload_gb"),
        *("limit_mm_per_prompt", "mm_processor_cache_gb", "skip_mm_profiling", "language_model_only"),
        # how many devices
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size"),
        *("enable_expert_parallel", "disable_custom_all_reduce"),
        # how it is scheduled and compiled
        *("enable_prefix_caching", "enable_chunked_prefill", "long_prefill_token_threshold", "scheduling_policy"),
        *("async_scheduling", "stream_interval", "disable_sliding_window", "disable_cascade_attn"),
        *("enforce_eager", "optimization_level", "performance_mode", "seed", "disable_log_stats"),
        # adapters and names
        *("enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "reasoning_parser", "served_model_name"),
    }
)
# These choose the model. A call may choose any model, whose own code then does not run.
WHICH_MODEL = frozenset({"model_name_or_path", "tokenizer", "revision", "tokenizer_revision", "quantization"})
_OPERATORS_FOLDERS = frozenset({"lora_modules"})
_BRINGS_NO_CODE = ENGINE_ARGUMENTS | {
    *("trust_remote_code", "gpu_ids", "device", "dtype", "batch_size", "gguf_file", "gpu_memory_utilization"),
}


def check_arguments(plan: ResolvedConfig) -> None:
    """Raise `PromptmillError` (`invalid_config`) if a call sets a setting that is reserved for the operator.

    A call may repeat the operator's value.
    """
    if plan.trust_client:
        return
    block, operator = (_given(side, plan.backend) for side in (plan.settings, plan.operator))
    ours = type(getattr(plan.settings.backend_configs, plan.backend)).model_fields
    allowed = ENGINE_ARGUMENTS | WHICH_MODEL | (ours.keys() - _OPERATORS_FOLDERS)
    for name in sorted(plan.from_call - allowed):
        if name not in operator or block.get(name) != operator[name]:
            near = close_matches(name, allowed, n=1, cutoff=0.8)
            meant = f"did you mean {near[0]}? Otherwise " if near else ""
            raise config_error(
                f"backend_configs.{plan.backend}.{name:.60}", f"a call may not set this; {meant}{TRUST_SWITCH}"
            )


def check_written(backend: str, extra: Mapping[str, Any]) -> None:
    """Raise `PromptmillError` (`invalid_config`) for unknown names in an engine's block that resemble known ones.

    Used for a block without a model: a misspelt name explains more than "missing".
    """
    path, problems = "", []
    for name in extra:
        near = close_matches(name, _BRINGS_NO_CODE, n=1, cutoff=0.8)
        meant = "model_name_or_path" if name == "model" else near[0] if near else name
        if meant != name:
            problems.append(f"{f'{name:.60}: ' if path else ''}unknown key; did you mean {meant}?")
            path = path or f"backend_configs.{backend}.{name:.60}"
    if problems:
        raise config_error(path, " ".join(problems))


def trusts_remote_code(plan: ResolvedConfig) -> bool:
    """Return whether the model's own code may run: only if the operator allowed it for this very model.

    It may not run if the call sets anything else that may bring code, such as another tokenizer or revision.
    """
    block = getattr(plan.settings.backend_configs, plan.backend)
    operator = getattr(plan.operator.backend_configs, plan.backend)
    if not getattr(block, "trust_remote_code", False) or plan.trust_client:
        return bool(getattr(block, "trust_remote_code", False))
    if "trust_remote_code" in plan.from_call and not operator.trust_remote_code:
        path = f"backend_configs.{plan.backend}.trust_remote_code"
        raise config_error(path, f"a call may not switch this on; {TRUST_SWITCH}")
    ours, theirs = _given(plan.settings, plan.backend), _given(plan.operator, plan.backend)
    return all(name in _BRINGS_NO_CODE or ours.get(name) == theirs.get(name) for name in plan.from_call)


def _given(settings: Any, backend: str) -> dict[str, Any]:
    block: dict[str, Any] = getattr(settings.backend_configs, backend).model_dump()
    return block
