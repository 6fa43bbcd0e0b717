"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from sllmd.api.choices import Choices
from sllmd.api.chunks import ChatChunks
from sllmd.api.forms import Form
from sllmd.api.logprobs import chat_content
from sllmd.api.openai import ChatRequest
from sllmd.api.parsing import ignored_fields, parse_chat
from sllmd.api.prompts import encode_chat
from sllmd.api.resuming import begin_kept, send_kept
from sllmd.api.rooms import EXCHANGE, ROOMS, read_body
from sllmd.api.sampling import chat_sampling, choice_seed, drawn_seed, room_for
from sllmd.api.stream import collect_choices, ignored_header, new_shape, stream_choices, whole_answer
from sllmd.roles.generation import Delta, GenerationRequest
from sllmd.roles.status import ModelCard
from sllmd.text.tokenizer import Tokenizer


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Handler."""
    rooms, exchange = request.app[ROOMS], request[EXCHANGE]
    wanted = await read_body(request, parse_chat)
    card = await rooms.router.prepare(wanted.model)
    exchange.model = card.name
    tokenizer = await rooms.router.tokenizer(wanted.model)
    prompt_ids = await encode_chat(
        rooms.renderer,
        tokenizer,
        wanted.messages,
        context_tokens=card.context_tokens,
        add_generation_prompt=wanted.add_generation_prompt,
        template_values=wanted.chat_template_kwargs,
    )
    requests = _generation_requests(request, wanted, card, tokenizer, prompt_ids)
    choices = Choices(rooms.router, requests)
    counts_prompt = [index == 0 for index in range(wanted.n)]
    shape = new_shape(wanted, "chatcmpl")
    headers = ignored_header(ignored_fields(wanted))
    if wanted.stream:
        form = Form("chat", shape, wanted.logprobs, tuple(counts_prompt))
        kept = begin_kept(request, choices, form, requests)
        if kept is not None:
            return await send_kept(request, kept, headers)
        chunks = ChatChunks(shape, choices=wanted.n, logprobs=wanted.logprobs)
        return await stream_choices(request, choices, chunks, counts_prompt=counts_prompt, headers=headers)
    deltas = await collect_choices(request, choices)
    answers = [_choice(index, said, wanted.logprobs) for index, said in enumerate(deltas)]
    return whole_answer(
        request, shape, "chat.completion", choices, answers, counts_prompt=counts_prompt, headers=headers
    )


def _generation_requests(
    request: web.Request,
    wanted: ChatRequest,
    card: ModelCard,
    tokenizer: Tokenizer,
    prompt_ids: tuple[int, ...],
) -> list[GenerationRequest]:
    max_tokens = room_for(
        len(prompt_ids),
        wanted.max_completion_tokens or wanted.max_tokens,
        None,
        context_tokens=card.context_tokens,
        param="messages",
    )
    seed = drawn_seed(wanted)
    return [
        GenerationRequest(
            request_id=request[EXCHANGE].request_id,
            model=card.name,
            prompt_ids=prompt_ids,
            digest=card.digest,
            sampling=chat_sampling(wanted, tokenizer, seed=choice_seed(seed, choice), max_tokens=max_tokens),
            stop=tuple(wanted.stop),
            keep_alive_seconds=wanted.keep_alive,
            skip_special_tokens=wanted.skip_special_tokens,
            key=request[EXCHANGE].key_id or "",
        )
        for choice in range(wanted.n)
    ]


def _choice(index: int, deltas: Sequence[Delta], with_logprobs: bool) -> dict[str, Any]:
    logprobs = None
    if with_logprobs:
        tokens = [token for delta in deltas for token in delta.tokens]
        logprobs = {"content": chat_content(tokens), "refusal": None}
    content = "".join(delta.text for delta in deltas)
    return {
        "index": index,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": deltas[-1].finish_reason,
    }
