"""``sllmd run``: one answer, or a talk, streamed to the terminal."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sllmd.cli.client import segment
from sllmd.cli.serving import TargetTier, follow_load, request_text
from sllmd.cli.session import ModelArgument, Session, command
from sllmd.cli.wrapping import WordWrap
from sllmd.core.errors import ContextLengthExceeded, InvalidRequest

app = typer.Typer()

_REQUEST_ID_HEADER = "x-request-id"
_GOODBYE = frozenset({"/exit", "/bye", "/quit"})
_HELP = "/clear forgets what was said, /exit or Ctrl-D ends; Ctrl-C ends an answer; all else is for the model"
TEMPERATURE = 0.7
"""Unless told otherwise: at the API's 1.0 small models lose the thread, at 0 they repeat themselves."""
ANSWER_TOKENS_MAX = 1024
"""Unless told otherwise: a model that finds no end would fill its context."""
_COMMAND = re.compile(r"/\w+")


@dataclass(slots=True)
class _Talk:
    """How to ask: what every request of one command has in common."""

    session: Session
    model: str
    options: dict[str, Any]
    raw: bool
    timings: bool
    limit_tokens: int | None = None
    """Of an answer, where nobody gave one; None: somebody did, or the context has no room for it."""
    ended: str | None = None
    """Why the last answer ended, as the API calls it."""


@command(app, "run")
def run(
    session: Session,
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask. Without it: a talk on a terminal, else standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told about its part.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Longest answer. (default: {ANSWER_TOKENS_MAX})")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help=f"0: always the likeliest token. (default: {TEMPERATURE})")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same answer.")] = None,
    keep_alive: Annotated[str | None, typer.Option(help="How long the model stays afterwards.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Go on from the prompt's text, no chat template.")
    ] = False,
    timings: Annotated[bool, typer.Option("--timings", help="Show where the time went, afterwards.")] = False,
) -> None:
    """Ask a model something, or talk with it. It is loaded when it is not."""
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "keep_alive": keep_alive}
    options = {"temperature": TEMPERATURE} | {key: value for key, value in given.items() if value is not None}
    limit_tokens = ANSWER_TOKENS_MAX if max_tokens is None else None
    talk = _Talk(session, model, options, raw, timings, limit_tokens)
    if session.shows_progress:
        follow_load(session, model, TargetTier.DEVICE)
    messages = [{"role": "system", "content": system}] if system else []
    if prompt is None and sys.stdin.isatty() and session.for_people:
        _converse(talk, messages)
        return
    text = sys.stdin.read() if prompt in (None, "-") else str(prompt)
    if not text.strip():
        raise InvalidRequest("nothing to ask", hint='give a prompt: sllmd run MODEL "Hello"')
    _answer(talk, [*messages, {"role": "user", "content": text}])


def _converse(talk: _Talk, messages: list[dict[str, str]]) -> None:
    """Ask and answer until Ctrl-D or /exit; Ctrl-C ends an answer, not the talk."""
    talk.session.note(f"talking with {talk.model}; /help tells what else can be said")
    system = list(messages)
    while True:
        try:
            text = input(">>> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        text = text.strip()
        if text in _GOODBYE:
            return
        if text == "/clear":
            messages[:] = system
            continue
        if _COMMAND.fullmatch(text):
            print(_HELP, file=sys.stderr)
            continue
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        try:
            messages.append({"role": "assistant", "content": _answer(talk, messages)})
        except KeyboardInterrupt:
            print()
            messages.pop()


def _answer(talk: _Talk, messages: list[dict[str, str]]) -> str:
    """One answer, printed as it comes; the whole of it. A model that cannot chat goes on from the text."""
    try:
        return _ask_within(talk, messages)
    except InvalidRequest as error:
        if talk.raw or error.param != "model":
            raise
        talk.session.note(f"{error.message}; going on from the text")
        talk.raw = True
        return _ask_within(talk, messages)


def _ask_within(talk: _Talk, messages: list[dict[str, str]]) -> str:
    """One answer within the limit, or within what the context has room for."""
    try:
        answer = _ask(talk, messages)
    except ContextLengthExceeded:
        if talk.limit_tokens is None:
            raise
        talk.limit_tokens = None
        answer = _ask(talk, messages)
    if talk.ended == "length" and talk.limit_tokens is not None:
        talk.session.note(f"[cut off after {talk.limit_tokens} tokens; --max-tokens allows more]")
    elif talk.ended == "length" and not talk.raw and "max_tokens" not in talk.options:
        talk.session.note("[cut off: the model's context is full]")
    return answer


def _ask(talk: _Talk, messages: list[dict[str, str]]) -> str:
    path, body, text_of = _request(talk, messages)
    if not talk.session.for_people:
        answer, headers = talk.session.client.post_with_headers(path, body)
        talk.ended = answer["choices"][0].get("finish_reason")
        talk.session.show_object(answer, "")
        _show_timings(talk, _request_id(headers))
        return text_of(answer["choices"][0], "message")
    headers_out: dict[str, str] = {}
    answer = _show(_pieces(talk, path, body, text_of, headers_out))
    _show_timings(talk, _request_id(headers_out))
    return answer


def _show(pieces: Iterator[str]) -> str:
    """Print an answer as it comes, on a terminal broken between words; the whole of it."""
    wrap = WordWrap(shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
    answer = []
    try:
        for piece in pieces:
            answer.append(piece)
            sys.stdout.write(wrap.push(piece) if wrap else piece)
            sys.stdout.flush()
    finally:
        if answer:
            print(wrap.flush() if wrap else "")
    return "".join(answer)


_TextOf = Callable[[dict[str, Any], str], str]


def _request(talk: _Talk, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any], _TextOf]:
    """Path and body of the request, and how to find the text in a choice."""
    body: dict[str, Any] = {"model": talk.model, **talk.options}
    if talk.limit_tokens is not None:
        body["max_tokens"] = talk.limit_tokens
    if talk.raw:
        body["prompt"] = "\n".join(message["content"] for message in messages)
        return "/v1/completions", body, lambda choice, _: choice.get("text") or ""
    body["messages"] = messages
    return "/v1/chat/completions", body, lambda choice, key: (choice.get(key) or {}).get("content") or ""


def _pieces(
    talk: _Talk, path: str, body: dict[str, Any], text_of: _TextOf, headers_out: dict[str, str]
) -> Iterator[str]:
    events = talk.session.client.stream(path, {**body, "stream": True}, headers_out=headers_out)
    for event in events:
        for choice in event.get("choices", ()):
            talk.ended = choice.get("finish_reason") or talk.ended
            yield text_of(choice, "delta")


def _request_id(headers: Mapping[str, str]) -> str | None:
    return {name.lower(): value for name, value in headers.items()}.get(_REQUEST_ID_HEADER)


def _show_timings(talk: _Talk, request_id: str | None) -> None:
    if talk.timings and request_id:
        request = talk.session.client.get(f"/sllmd/v1/requests/{segment(request_id)}")
        print(f"\n{request_text(talk.session, request)}", file=sys.stderr)
