"""POST /tokenize and /detokenize, in vLLM's shape."""

from __future__ import annotations

import asyncio

from aiohttp import web

from sllmd.api.openai import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from sllmd.api.parsing import parse_plain
from sllmd.api.prompts import THREAD_CHARACTERS_MIN, template_messages
from sllmd.api.rooms import EXCHANGE, ROOMS, read_json
from sllmd.api.sampling import check_token_ids
from sllmd.core.errors import InvalidRequest
from sllmd.text.tokenizer import Tokenizer


async def tokenize(request: web.Request) -> web.Response:
    """Handler."""
    rooms = request.app[ROOMS]
    wanted = parse_plain(TokenizeRequest, await read_json(request))
    card = rooms.router.model(wanted.model)
    request[EXCHANGE].model = card.name
    tokenizer = await rooms.router.tokenizer(wanted.model)
    text, special = _text(wanted, tokenizer)
    if len(text) < THREAD_CHARACTERS_MIN:
        ids = tokenizer.encode(text, special=special)
    else:
        ids = await asyncio.to_thread(tokenizer.encode, text, special=special)
    answer = TokenizeResponse(
        count=len(ids),
        max_model_len=card.context_tokens,
        tokens=ids,
        token_strs=[tokenizer.token_text(i) for i in ids] if wanted.return_token_strs else None,
    )
    return web.json_response(text=answer.model_dump_json())


async def detokenize(request: web.Request) -> web.Response:
    """Handler."""
    rooms = request.app[ROOMS]
    wanted = parse_plain(DetokenizeRequest, await read_json(request))
    request[EXCHANGE].model = rooms.router.model(wanted.model).name
    tokenizer = await rooms.router.tokenizer(wanted.model)
    check_token_ids(wanted.tokens, tokenizer, "tokens")
    text = tokenizer.decode(wanted.tokens, skip_special=False)
    return web.json_response(text=DetokenizeResponse(prompt=text).model_dump_json())


def _text(wanted: TokenizeRequest, tokenizer: Tokenizer) -> tuple[str, bool]:
    """What is to be tokenised, and whether the tokenizer adds its special tokens."""
    if (wanted.prompt is None) == (wanted.messages is None):
        raise InvalidRequest("Either `prompt` or `messages` is required.", param="prompt")
    if wanted.prompt is not None:
        return wanted.prompt, wanted.add_special_tokens is not False
    values = {**wanted.chat_template_kwargs, "add_generation_prompt": wanted.add_generation_prompt}
    text = tokenizer.render_chat(template_messages(wanted.messages or []), **values)
    return text, bool(wanted.add_special_tokens)
