"""The tools that answer: `generate`, `multimodal_generate`, `multiturn_generate`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastmcp import Context, FastMCP
from fastmcp.tools import ToolResult
from mcp_types import ToolAnnotations
from pydantic import Field

from promptmill.backends.protocol import Scope
from promptmill.conversation import Conversation, conversation_from_messages, conversation_from_prompt
from promptmill.errors import PromptmillError, input_error
from promptmill.server.arguments import Loose, Prompts, SystemPrompt
from promptmill.server.progress import with_progress
from promptmill.server.refusals import said
from promptmill.server.results import ANSWERS, result_of
from promptmill.service import Service

_PROMPTS_AT_ONCE = 500  # half a millisecond of work, after which others get their turn


def add_answer_tools(mcp: FastMCP, service: Service) -> None:
    """Add the three tools to the app."""

    @mcp.tool(
        output_schema=ANSWERS,
        annotations=ToolAnnotations(title="Answer prompts", readOnlyHint=True, openWorldHint=True),
    )
    @said
    async def generate(ctx: Context, prompt_ls: Prompts, system_prompt: SystemPrompt = "") -> ToolResult:
        """Answer a list of independent text prompts with the configured model, in one call.

        Returns `ans_ls`, one answer per prompt in the same order; send many prompts at once, they run concurrently.
        A prompt that fails has the answer "" and an entry in `errors`, and costs the others nothing.
        """
        items: list[Conversation | PromptmillError] = []
        for index, item in enumerate(prompt_ls):
            items.append(conversation_from_prompt(item, f"prompt_ls[{index}]"))
            if index % _PROMPTS_AT_ONCE == _PROMPTS_AT_ONCE - 1:
                await asyncio.sleep(0)
        return await _answer(ctx, service, items, system_prompt)

    @mcp.tool(
        output_schema=ANSWERS,
        annotations=ToolAnnotations(title="Answer prompts about images", readOnlyHint=True, openWorldHint=True),
    )
    @said
    async def multimodal_generate(
        ctx: Context,
        multimodal_path: Annotated[
            list[Annotated[list[str], Loose]],
            Loose,
            Field(
                description="For each prompt the list of its images: local paths, or file, http(s) or data URLs. "
                "[] for a prompt without one.",
                examples=[[["chart.png"], ["https://example.com/a.jpg", "b.webp"]]],
            ),
        ],
        prompt_ls: Prompts,
        system_prompt: SystemPrompt = "",
        image_tag: Annotated[
            str | None,
            Field(description="Text such as <img> whose k-th occurrence in a prompt is replaced by its k-th image."),
        ] = None,
    ) -> ToolResult:
        """Answer prompts that come with images; `multimodal_path[i]` holds the images of `prompt_ls[i]`.

        Images follow the prompt's text in order, unless `image_tag` marks their places. Returns `ans_ls` as `generate`
        does.
        """
        if len(multimodal_path) != len(prompt_ls):
            raise input_error(
                f"multimodal_path has {len(multimodal_path)} entries but prompt_ls has {len(prompt_ls)}; "
                "send one list of images per prompt, [] for none."
            )
        tag = image_tag or service.plan.settings.image_tag
        items = [
            _with_images(conversation_from_prompt(item, f"prompt_ls[{index}]"), sources, tag)
            for index, (item, sources) in enumerate(zip(prompt_ls, multimodal_path, strict=True))
        ]
        return await _answer(ctx, service, items, system_prompt)

    @mcp.tool(
        output_schema=ANSWERS,
        annotations=ToolAnnotations(title="Continue a conversation", readOnlyHint=True, openWorldHint=True),
    )
    @said
    async def multiturn_generate(
        ctx: Context,
        messages: Annotated[
            list[dict[str, Any]],
            Loose,
            Field(
                description="One conversation, oldest turn first: objects with `role` (system, user, assistant, "
                "developer or tool) and `content`.",
                examples=[
                    [
                        {"role": "user", "content": "My name is Ada."},
                        {"role": "assistant", "content": "Hello, Ada!"},
                        {"role": "user", "content": "What is my name?"},
                    ]
                ],
            ),
        ],
        system_prompt: SystemPrompt = "",
    ) -> ToolResult:
        """Answer the last turn of one conversation. Returns `ans_ls` with that one answer."""
        return await _answer(ctx, service, [conversation_from_messages(messages, "messages")], system_prompt)


def _with_images(conversation: Conversation, sources: Sequence[str], tag: str | None) -> Conversation | PromptmillError:
    try:
        return conversation.with_images(sources, tag)
    except PromptmillError as error:
        return error


async def _answer(
    ctx: Context, service: Service, items: Sequence[Conversation | PromptmillError], system_prompt: str
) -> ToolResult:
    scope = Scope(total=len(items))
    any_failure = service.plan.settings.on_error == "raise"
    outcomes = await with_progress(ctx, service, scope, service.generate(items, scope, system_prompt=system_prompt))
    return result_of(outcomes, scope, any_failure=any_failure)
