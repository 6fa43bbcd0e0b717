"""Chat templates: a conversation to one prompt, as Hugging Face's templates expect to be run.

Templates come with checkpoints and are untrusted code: they run in jinja2's immutable sandbox, without any
attribute that begins with an underscore, in a process whose time and memory are bounded (``renderer``).
The helpers are those that published templates use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from sllmd.core.errors import InvalidRequest, UnsupportedCheckpoint

_MISTAKES = (jinja2.TemplateError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError)
"""What a template raises that expects other messages."""


class ChatTemplate:
    """One model's template, compiled at first use."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)

    def render(
        self, messages: Sequence[Mapping[str, Any]], /, *, add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """The prompt. Raises InvalidRequest when there is no template or it refuses ``messages``.

        Takes as long and as much memory as the template likes: ``Renderer`` calls it where that is bounded.
        """
        self.require()
        values = {"tools": None, "documents": None, **self.special_tokens, **extra}
        values.update(messages=messages, add_generation_prompt=add_generation_prompt)
        try:
            return self._compiled.render(values)
        except _Refused as error:
            raise InvalidRequest(f"the model's chat template refuses: {error}", param="messages") from error
        except (MemoryError, RecursionError) as error:
            raise InvalidRequest(
                "the model's chat template takes too much memory", param="messages"
            ) from error
        except _MISTAKES as error:
            raise InvalidRequest(
                f"the model's chat template cannot render these messages: {error}", param="messages"
            ) from error

    def require(self) -> None:
        """Raise InvalidRequest when the model has no template."""
        if self.source is None:
            raise InvalidRequest(
                "this model has no chat template, so it cannot be used for chat",
                param="model",
                hint="use /v1/completions, or import a checkpoint that has a chat template",
            )

    @cached_property
    def _compiled(self) -> jinja2.Template:
        assert self.source is not None
        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise UnsupportedCheckpoint(
                f"the model's chat template cannot be compiled: {error}",
                hint="import a checkpoint with a valid chat_template.jinja",
            ) from error


class _Refused(jinja2.TemplateError):
    """A template called ``raise_exception``."""


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}``: marks assistant text for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The body as it stands."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    helpers: dict[str, Callable[..., Any]] = {"raise_exception": _raise, "strftime_now": _strftime_now}
    environment.globals.update(helpers)
    return environment


def _raise(message: str) -> None:
    raise _Refused(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the template's author sees it; jinja2's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
