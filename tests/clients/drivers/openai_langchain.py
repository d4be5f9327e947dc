"""LangChain at a server's URL: chat, stream, structured output, tools, Responses, embeddings; prints what it met."""

import json
import sys

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

URL, TOKEN = sys.argv[1:]
OPTIONS = {"base_url": URL, "api_key": TOKEN, "max_retries": 0}


class City(BaseModel):
    name: str


model = ChatOpenAI(model="default", **OPTIONS)
found = {
    "invoke": model.invoke("hi").content,
    "usage": model.invoke("hi").usage_metadata["total_tokens"],
    "stream": "".join(chunk.content for chunk in model.stream("hi there")),
    "structured": model.with_structured_output(City).invoke("json").name,
    "responses": ChatOpenAI(model="default", use_responses_api=True, **OPTIONS).invoke("hi").text,
    "embeddings": OpenAIEmbeddings(model="default", check_embedding_ctx_length=False, **OPTIONS).embed_documents(["a"]),
}
look = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}
whole = None
for chunk in model.bind_tools([look]).stream("think"):
    whole = chunk if whole is None else whole + chunk
found["called"] = [whole.content, [(call["name"], call["args"]) for call in whole.tool_calls]]
whole = None
for chunk in ChatOpenAI(model="default", use_responses_api=True, **OPTIONS).bind_tools([look]).stream("think"):
    whole = chunk if whole is None else whole + chunk
found["acted"] = [whole.text, [(call["name"], call["args"]) for call in whole.tool_calls]]
try:
    OpenAIEmbeddings(model="default", **OPTIONS).embed_documents(["a"])
except openai.BadRequestError as error:
    found["tokens"] = error.message
except Exception as error:  # tiktoken downloads its words, which a test may not
    found["tokens"] = f"check_embedding_ctx_length: {type(error).__name__}"
try:
    model.invoke("long")
except openai.BadRequestError as error:
    found["long"] = type(error).__name__, error.code
print(json.dumps(found))
