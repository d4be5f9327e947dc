"""litellm at a server's URL: completion, stream, several answers, embeddings, an error; prints what it met."""

import json
import sys

import litellm

URL, TOKEN = sys.argv[1:]
OPTIONS = {"api_base": URL, "api_key": TOKEN, "max_retries": 0}


def asked(text, **options):
    messages = [{"role": "user", "content": text}]
    return litellm.completion("openai/default", messages, **OPTIONS, **options)


whole = asked("hi")
stream = list(asked("hi there", stream=True, stream_options={"include_usage": True}))
found = {
    "completion": whole.choices[0].message.content,
    "model": whole.model,
    "stream": "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices),
    "usage": stream[-1].usage.total_tokens,
    "several": len(asked("hi", n=2).choices),
    "embedding": litellm.embedding("openai/default", ["a"], **OPTIONS).data[0]["embedding"],
}
look = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
pieces = list(asked("think", stream=True, tools=[look]))
message = litellm.stream_chunk_builder(pieces).choices[0].message
(call,) = message.tool_calls
found["thought"] = message.reasoning_content
found["called"] = message.content, call.function.name, call.function.arguments
try:
    asked("long")
except litellm.ContextWindowExceededError:
    found["long"] = "ContextWindowExceededError"
print(json.dumps(found))
