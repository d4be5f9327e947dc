"""What of an engine's settings only the operator may say: all that runs code, writes files or opens connections."""

from __future__ import annotations

from typing import Any

from promptmill.config.loading import ResolvedConfig
from promptmill.core.errors import config_error

_SWITCH = "set it in the configuration file, or start the server with `promptmill serve --trust-client`."
_OF_THE_OPERATOR = frozenset(
    {
        # names of classes and files to import, or of what imports them
        *("worker_cls", "worker_extension_cls", "scheduler_cls", "logits_processors", "distributed_executor_backend"),
        *("reasoning_parser_plugin", "io_processor_plugin", "model_class_overrides", "hf_overrides"),
        *("compilation_config", "kernel_config", "quantization_config", "additional_config", "speculative_config"),
        *("load_format", "model_loader_extra_config", "weight_transfer_config", "allow_deprecated_quantization"),
        # connections and files
        *("kv_transfer_config", "kv_events_config", "ec_transfer_config", "ec_manager_config", "engram_config"),
        *("master_addr", "master_port", "data_parallel_address", "data_parallel_rpc_port", "nnodes", "node_rank"),
        *("otlp_traces_endpoint", "hf_token", "download_dir", "allowed_local_media_path", "allowed_media_domains"),
        *("profiler_config", "logging_config", "log_config_file", "mm_encoder_fp8_scale_save_path"),
        *("fault_tolerance_config", "structured_outputs_config", "reasoning_config", "enable_prompt_embeds"),
        *("enable_mm_embeds", "fail_on_environ_validation", "kv_offloading_backend", "offload_backend"),
    }
)
# With these a call changes how the operator's model runs, not whose code runs. A tokenizer, a revision or a
# configuration of its own may bring code, and so may what a later vLLM adds.
_BRINGS_NO_CODE = frozenset(
    {
        *("trust_remote_code", "gpu_ids", "device", "dtype", "batch_size", "gguf_file", "gpu_memory_utilization"),
        *(
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "enforce_eager",
            "seed",
            "block_size",
            "swap_space",
        ),
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel"),
        *("enable_prefix_caching", "enable_chunked_prefill", "kv_cache_dtype", "kv_cache_memory_bytes"),
        *("cpu_offload_gb", "limit_mm_per_prompt", "max_logprobs", "disable_log_stats", "async_scheduling"),
        *("enable_lora", "max_loras", "max_lora_rank", "reasoning_parser", "served_model_name"),
    }
)


def check_arguments(plan: ResolvedConfig) -> None:
    """Raise `PromptmillError` (`invalid_config`) when a call sets what is the operator's to set.

    A call may repeat what the operator said.
    """
    block, operator = (_given(side, plan.backend) for side in (plan.settings, plan.operator))
    if plan.trust_client:
        return
    for name in sorted(plan.from_call & _OF_THE_OPERATOR):
        if name not in operator or block.get(name) != operator[name]:
            raise config_error(f"backend_configs.{plan.backend}.{name}", f"a call may not set this; {_SWITCH}")


def trusts_remote_code(plan: ResolvedConfig) -> bool:
    """Return whether the model's own code may run: only if the operator said so, of this very model.

    So not when a call sets anything beside it that may bring code, such as another tokenizer or revision.
    """
    block = getattr(plan.settings.backend_configs, plan.backend)
    operator = getattr(plan.operator.backend_configs, plan.backend)
    if not getattr(block, "trust_remote_code", False) or plan.trust_client:
        return bool(getattr(block, "trust_remote_code", False))
    if "trust_remote_code" in plan.from_call and not operator.trust_remote_code:
        path = f"backend_configs.{plan.backend}.trust_remote_code"
        raise config_error(path, f"a call may not switch this on; {_SWITCH}")
    ours, theirs = _given(plan.settings, plan.backend), _given(plan.operator, plan.backend)
    return all(name in _BRINGS_NO_CODE or ours.get(name) == theirs.get(name) for name in plan.from_call)


def _given(settings: Any, backend: str) -> dict[str, Any]:
    block: dict[str, Any] = getattr(settings.backend_configs, backend).model_dump()
    return block
