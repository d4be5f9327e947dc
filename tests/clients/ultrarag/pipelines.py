"""UltraRAG's examples that ask its generation server, each with what its documentation has a user fill in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

EXPERIMENTS = Path("examples", "experiments")
DEMOS = Path("examples", "demos")
RAG = "prompt/qa_rag_boxed.jinja"
PLAIN = {"q_ls": "question", "gt_ls": "golden_answers"}
CHOICES = {"path": "data/choices.jsonl", "key_map": {**PLAIN, "choices_ls": "choices"}}
PAGES = {"path": "data/pages.jsonl", "key_map": {**PLAIN, "multimodal_path": "image"}, "limit": 2}
SEARCH_O1 = {
    "stop": ["<|im_end|>", "<|end_search_query|>"],
    "include_stop_str_in_output": True,
    "top_k": 20,
    "repetition_penalty": 1.05,
}
# What the prompt server's parameter file has to name for some examples, as its last lines say.
TEMPLATES = {
    "gen_subq_template": "prompt/gen_subq.jinja",
    "check_psg_template": "prompt/check_passages.jinja",
    "evisrag_template": "prompt/evisrag.jinja",
}
# Left out: AgentCPM-Report and its twin, up to 140 rounds in a format of one model's own.


def pipelines(url: str) -> list[dict[str, Any]]:
    """Return the examples: name, file, declared fields of the data, and the parameters to lay over the built ones."""
    return [
        _example("vanilla_llm", url),
        _example("vanilla_wow", url),
        _example("vanilla_multiple_choice", url, template="prompt/qa_boxed_multiple_choice.jinja", data=CHOICES),
        _example("vanilla_rag", url, template=RAG),
        _example("rag_deploy", url, template=RAG),
        _example("rag_full", url, template=RAG),
        _example("rag_wow", url, template="prompt/qa_rag_boxed_wow.jinja"),
        _example("rag_multiple_choice", url, template="prompt/qa_rag_boxed_multiple_choice.jinja", data=CHOICES),
        _example("rag_loop", url, template=RAG),
        _example("rag_branch", url, template=RAG),
        _example("rankcot", url),
        _example("ircot", url, template="prompt/IRCoT.jinja"),
        _example("iterretgen", url, template="prompt/IterRetGen_rag.jinja"),
        _example(
            "search_r1",
            url,
            template="prompt/search_r1_init.jinja",
            sampling={"stop": ["</search>", "<|im_end|>"]},
            extra={"include_stop_str_in_output": True},
        ),
        _example(
            "r1_searcher",
            url,
            template="prompt/r1_searcher_init.jinja",
            sampling={"stop": ["<|end_of_query|>"]},
            extra={"skip_special_tokens": False},
        ),
        _example("search_o1", url, extra=SEARCH_O1),
        _example("search_o1", url, extra=SEARCH_O1, model="late: 500"),
        _example("search_o1", url, extra=SEARCH_O1, model="late: 400"),
        _example("search_o1", url, extra=SEARCH_O1, model="late: empty"),
        _example("webnote", url),
        _example("webnote_websearch", url),
        _example("vanilla_vlm", url, data=PAGES),
        _example("multimodal_rag", url, images=True),
        _example("visrag", url, template="prompt/visrag.jinja", images=True),
        _example("evisrag", url, images=True),
        _example("multiturn_chat", url),
        _example("LLM", url, DEMOS),
        _example("LLM_memory", url, DEMOS, template="prompt/qa_with_memory.jinja"),
        _example("RAG", url, DEMOS, template="prompt/qa_rag_citation.jinja"),
        _example("RAG_memory", url, DEMOS, template="prompt/qa_rag_with_memory.jinja"),
        _example("RAG_web", url, DEMOS, template=RAG),
        _example("LightResearch", url, DEMOS),
    ]


def _example(
    name: str,
    url: str,
    folder: Path = EXPERIMENTS,
    *,
    template: str | None = None,
    data: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    images: bool = False,
    model: str = "m",
) -> dict[str, Any]:
    block = {"base_url": url, "api_key": "k", "model_name": model}
    block |= {} if model == "m" else {"retries": 2, "base_delay": 0.01}
    generation = {
        "backend": "openai",
        "backend_configs": {"openai": block},
        "sampling_params": {"temperature": 0.7, "top_p": 0.8, "max_tokens": 2048, **(sampling or {})},
        "extra_params": {"chat_template_kwargs": {"enable_thinking": False}} if extra is None else extra,
    }
    benchmark = {"limit": 4, **(data or {})}
    parameters: dict[str, Any] = {"benchmark": {"benchmark": benchmark}}
    parameters |= {server: copy.deepcopy(generation) for server in ("generation", "cot", "gen")}
    if template:
        parameters["prompt"] = {"template": template}
    if images:
        parameters["retriever"] = {"corpus_path": "data/pages_corpus.jsonl", "is_multimodal": True}
    fields = ",".join((data or {}).get("key_map", PLAIN))
    label = name if model == "m" else f"{name}, {model}"
    return {"name": label, "file": str(folder / f"{name}.yaml"), "fields": fields, "parameters": parameters}
