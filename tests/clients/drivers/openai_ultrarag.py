"""The calls of UltraRAG's `openai` backend (servers/generation) with its own parameter file; prints the answers."""

import asyncio
import json
import sys

from openai import AsyncOpenAI

URL, TOKEN = sys.argv[1:]
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "max_tokens": 2048}
EXTRA = {"chat_template_kwargs": {"enable_thinking": False}}


async def main():
    client = AsyncOpenAI(base_url=URL, api_key=TOKEN)

    async def answer(text):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        reply = await client.chat.completions.create(model="m", messages=messages, **SAMPLING, extra_body=EXTRA)
        return reply.choices[0].message.content

    print(json.dumps(await asyncio.gather(*(answer(f"hi {n}") for n in range(8)))))


asyncio.run(main())
