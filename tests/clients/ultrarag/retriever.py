"""A stand-in for UltraRAG's retriever: its tools over a few passages, by shared words, without models or indexes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ultrarag.server import UltraRAG_MCP_Server

app = UltraRAG_MCP_Server("retriever")


def words(text: str) -> set:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


class Retriever:
    def __init__(self, server: UltraRAG_MCP_Server):
        self.passages: list[str] = []
        self.images = False
        server.tool(
            self.retriever_init,
            output="model_name_or_path,backend_configs,batch_size,corpus_path,gpu_ids,is_multimodal,backend,index_backend,index_backend_configs,is_demo,collection_name->None",
        )
        server.tool(self.retriever_embed, output="embedding_path,overwrite,is_multimodal->None")
        server.tool(self.retriever_index, output="embedding_path,overwrite,collection_name,corpus_path->None")
        server.tool(self.retriever_search, output="q_ls,top_k,query_instruction,collection_name->ret_psg")
        server.tool(
            self.retriever_batch_search, output="batch_query_list,top_k,query_instruction,collection_name->ret_psg_ls"
        )
        server.tool(
            self.retriever_project_memory_search,
            output="q_ls,top_k,query_instruction,current_user_id->project_memory_content",
        )
        server.tool(self.retriever_deploy_search, output="retriever_url,q_ls,top_k,query_instruction->ret_psg")
        server.tool(
            self.retriever_websearch,
            output="q_ls,top_k,retrieve_thread_num,websearch_backend,websearch_backend_configs->ret_psg",
        )
        server.tool(
            self.retriever_batch_websearch,
            output="batch_query_list,top_k,retrieve_thread_num,websearch_backend,websearch_backend_configs->ret_psg_ls",
        )

    async def retriever_init(
        self,
        model_name_or_path: str,
        backend_configs: dict[str, Any],
        batch_size: int,
        corpus_path: str,
        gpu_ids: str | int | None = None,
        is_multimodal: bool = False,
        backend: str = "sentence_transformers",
        index_backend: str = "faiss",
        index_backend_configs: dict[str, Any] | None = None,
        is_demo: bool = False,
        collection_name: str = "",
    ) -> None:
        self._read(corpus_path)

    def _read(self, corpus_path: str = "data/corpus_example.jsonl") -> None:
        rows = [json.loads(line) for line in Path(corpus_path).read_text(encoding="utf-8").splitlines()]
        self.passages = [row.get("image_path") or row["contents"] for row in rows]

    async def retriever_embed(
        self, embedding_path: str | None = None, overwrite: bool = False, is_multimodal: bool = False
    ) -> None:
        pass

    async def retriever_index(
        self, embedding_path: str, overwrite: bool = False, collection_name: str = "", corpus_path: str = ""
    ) -> None:
        pass

    def _found(self, query: str, top_k: int | None) -> list[str]:
        if not self.passages:
            self._read()
        wanted = words(str(query))
        order = sorted(range(len(self.passages)), key=lambda n: (-len(wanted & words(self.passages[n])), n))
        return [self.passages[n] for n in order[: min(top_k or 5, 3)]]

    async def retriever_search(
        self, query_list: list[str], top_k: int = 5, query_instruction: str = "", collection_name: str = ""
    ) -> dict[str, list[list[str]]]:
        return {"ret_psg": [self._found(query, top_k) for query in query_list]}

    async def retriever_batch_search(
        self, batch_query_list: list[list[str]], top_k: int = 5, query_instruction: str = "", collection_name: str = ""
    ) -> dict[str, list[list[list[str]]]]:
        return {"ret_psg_ls": [[self._found(query, top_k) for query in batch] for batch in batch_query_list]}

    async def retriever_project_memory_search(
        self, query_list: list[str], top_k: int = 5, query_instruction: str = "", current_user_id: str = ""
    ) -> dict[str, list[list[str]]]:
        return {"project_memory_content": [self._found(query, top_k) for query in query_list]}

    async def retriever_deploy_search(
        self, retriever_url: str, query_list: list[str], top_k: int = 5, query_instruction: str = ""
    ) -> dict[str, list[list[str]]]:
        return {"ret_psg": [self._found(query, top_k) for query in query_list]}

    async def retriever_websearch(
        self,
        query_list: list[str],
        top_k: int | None = 5,
        retrieve_thread_num: int | None = 1,
        websearch_backend: str = "tavily",
        websearch_backend_configs: dict[str, Any] | None = None,
    ) -> dict[str, list[list[str]]]:
        return {"ret_psg": [self._found(query, top_k) for query in query_list]}

    async def retriever_batch_websearch(
        self,
        batch_query_list: list[list[str]],
        top_k: int | None = 5,
        retrieve_thread_num: int | None = 1,
        websearch_backend: str = "tavily",
        websearch_backend_configs: dict[str, Any] | None = None,
    ) -> dict[str, list[list[list[str]]]]:
        return {"ret_psg_ls": [[self._found(query, top_k) for query in batch] for batch in batch_query_list]}


if __name__ == "__main__":
    Retriever(app)
    app.run(transport="stdio")
