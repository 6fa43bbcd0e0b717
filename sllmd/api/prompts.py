"""Prompts of every form to token ids that fit the model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from sllmd.api.openai import ChatMessage
from sllmd.api.sampling import check_token_ids, context_overflow
from sllmd.core.errors import InvalidRequest, UnsupportedParameter
from sllmd.text.renderer import Renderer
from sllmd.text.tokenizer import Tokenizer

THREAD_CHARACTERS_MIN = 8192
"""Texts from this length on are tokenised in a thread, so that streams of others do not wait for them."""
_TEXT_PARTS = ("text", "refusal")


async def encode_prompt(
    tokenizer: Tokenizer, prompt: str | list[int], *, special: bool, context_tokens: int
) -> tuple[int, ...]:
    """Ids of one prompt; an empty text begins a document. Raises CallerError."""
    if isinstance(prompt, list):
        if len(prompt) > context_tokens:
            raise context_overflow(context_tokens, len(prompt), 0, "prompt")
        check_token_ids(prompt, tokenizer, "prompt")
        return tuple(prompt)
    ids = await encode_text(tokenizer, prompt, special=special, context_tokens=context_tokens, param="prompt")
    ids = ids or tokenizer.document_start_ids
    if not ids:
        raise InvalidRequest(
            "`prompt` is empty, and this model has no token to begin a document with.", param="prompt"
        )
    return ids


async def encode_chat(
    renderer: Renderer,
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    context_tokens: int,
    add_generation_prompt: bool,
    template_values: Mapping[str, Any],
) -> tuple[int, ...]:
    """Ids of a conversation as the model's template writes it. Raises CallerError."""
    values = {**template_values, "add_generation_prompt": add_generation_prompt}
    text = await renderer.render(tokenizer.chat_template, template_messages(messages), values)
    ids = await encode_text(tokenizer, text, special=False, context_tokens=context_tokens, param="messages")
    if not ids:
        raise InvalidRequest("The model's chat template makes an empty prompt of these.", param="messages")
    return ids


async def encode_text(
    tokenizer: Tokenizer, text: str, *, special: bool, context_tokens: int, param: str
) -> tuple[int, ...]:
    """Ids of ``text``. What cannot fit however it is cut is refused without tokenising it."""
    tokens_min = len(text) // tokenizer.token_bytes_max
    if tokens_min > context_tokens:
        raise context_overflow(context_tokens, tokens_min, 0, param, at_least=True)
    if len(text) < THREAD_CHARACTERS_MIN:
        return tuple(tokenizer.encode(text, special=special))
    return tuple(await asyncio.to_thread(tokenizer.encode, text, special=special))


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as templates expect them: text parts joined, ``developer`` under its older name."""
    return [_template_message(place, message) for place, message in enumerate(messages)]


def _template_message(place: int, message: ChatMessage) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "\n".join(
            _part_text(part, f"messages[{place}].content[{number}]") for number, part in enumerate(content)
        )
    if content is None and message.role not in ("assistant", "function"):
        param = f"messages[{place}].content"
        raise InvalidRequest(f"`{param}` is required.", param=param, code="missing_required_parameter")
    role = "system" if message.role == "developer" else message.role
    return {**(message.model_extra or {}), "role": role, "content": content or ""}


def _part_text(part: Mapping[str, Any], param: str) -> str:
    kind = part.get("type")
    if kind not in _TEXT_PARTS:
        raise UnsupportedParameter(
            f"`{param}` is of type `{str(kind)[:40]}`; this server reads text only.", param=param
        )
    text = part.get(str(kind))
    if not isinstance(text, str):
        raise InvalidRequest(f"`{param}.{kind}` must be a string.", param=param, code="invalid_type")
    return text
