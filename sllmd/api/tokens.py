"""POST /tokenize and /detokenize, in vLLM's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from sllmd.api.openai import DetokenizeResponse, TokenizeRequest, TokenizeResponse
from sllmd.api.parsing import ignored_fields, parse_detokenize, parse_tokenize
from sllmd.api.prompts import encode_text, template_messages
from sllmd.api.rooms import EXCHANGE, ROOMS, read_body
from sllmd.api.sampling import check_token_ids
from sllmd.api.stream import ignored_header
from sllmd.core.errors import InvalidRequest
from sllmd.text.renderer import Renderer
from sllmd.text.tokenizer import Tokenizer

THREAD_TOKENS_MIN = 2048
"""From as many tokens on they become text in a thread, so that streams of others do not wait for them."""


async def tokenize(request: web.Request) -> web.Response:
    """Handler."""
    rooms = request.app[ROOMS]
    wanted = await read_body(request, parse_tokenize)
    card = await rooms.router.prepare(wanted.model)
    request[EXCHANGE].model = card.name
    tokenizer = await rooms.router.tokenizer(wanted.model)
    text, special = await _text(wanted, rooms.renderer, tokenizer)
    param = "messages" if wanted.prompt is None else "prompt"
    ids = await encode_text(tokenizer, text, special=special, context_tokens=card.context_tokens, param=param)
    answer = TokenizeResponse(
        count=len(ids),
        max_model_len=card.context_tokens,
        tokens=list(ids),
        token_strs=await _token_texts(tokenizer, ids) if wanted.return_token_strs else None,
    )
    return web.json_response(text=answer.model_dump_json(), headers=ignored_header(ignored_fields(wanted)))


async def detokenize(request: web.Request) -> web.Response:
    """Handler."""
    rooms = request.app[ROOMS]
    wanted = await read_body(request, parse_detokenize)
    request[EXCHANGE].model = rooms.router.model(wanted.model).name
    tokenizer = await rooms.router.tokenizer(wanted.model)
    check_token_ids(wanted.tokens, tokenizer, "tokens")
    if len(wanted.tokens) < THREAD_TOKENS_MIN:
        text = tokenizer.decode(wanted.tokens, skip_special=False)
    else:
        text = await asyncio.to_thread(tokenizer.decode, wanted.tokens, skip_special=False)
    answer = DetokenizeResponse(prompt=text)
    return web.json_response(text=answer.model_dump_json(), headers=ignored_header(ignored_fields(wanted)))


async def _text(wanted: TokenizeRequest, renderer: Renderer, tokenizer: Tokenizer) -> tuple[str, bool]:
    """What is to be tokenised, and whether the tokenizer adds its special tokens."""
    if (wanted.prompt is None) == (wanted.messages is None):
        raise InvalidRequest("Either `prompt` or `messages` is required.", param="prompt")
    if wanted.prompt is not None:
        return wanted.prompt, wanted.add_special_tokens is not False
    values = {**wanted.chat_template_kwargs, "add_generation_prompt": wanted.add_generation_prompt}
    text = await renderer.render(tokenizer.chat_template, template_messages(wanted.messages or []), values)
    return text, bool(wanted.add_special_tokens)


async def _token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    def texts() -> list[str]:
        return [tokenizer.token_text(token_id) for token_id in ids]

    return texts() if len(ids) < THREAD_TOKENS_MIN else await asyncio.to_thread(texts)
