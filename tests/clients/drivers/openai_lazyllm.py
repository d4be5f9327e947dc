"""LazyLLM's online modules at a server's URL: an answer, a stream with a history, an embedding; prints what it got."""

import json
import sys

import lazyllm

URL, TOKEN = sys.argv[1:]
# LazyLLM joins its paths to the URL, which therefore ends with a slash; "default" is a word of its own
OPTIONS = {"source": "openai", "api_key": TOKEN}


def chat(**options):
    return lazyllm.OnlineChatModule(base_url=f"{URL}/", model="m", **OPTIONS, **options)


embed = lazyllm.OnlineEmbeddingModule(embed_url=f"{URL}/embeddings", embed_model_name="m", **OPTIONS)
found = {
    "answer": chat(stream=False)("hi there"),
    "stream": chat(stream=True)("hi", llm_chat_history=[["a", "b"]]),
    "embedding": embed("a"),
}
print(json.dumps(found))
