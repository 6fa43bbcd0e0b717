"""The bodies of OpenAI's API, as far as sllmd serves them, and its own additions to them. Pure.

Requests are strict about types and open to unknown fields (``parsing`` decides what becomes of those).
Responses are complete: a key that OpenAI's specification requires is there even when it is null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sllmd.api.fields import Content, Int, KeepAlive, LogitBias, Number, Prompts, Stops

MESSAGES_MAX = 10_000
"""Most turns of a conversation: far more than any context has room for, and read in a few milliseconds."""

FinishWord = Literal["stop", "length"]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


# -- requests ------------------------------------------------------------------------------------


class StreamOptions(_Request):
    """What a stream carries besides text."""

    include_usage: bool = False
    """One more chunk, before ``[DONE]``, with the usage of the whole request."""
    continuous_usage_stats: bool = False
    """Usage so far on every chunk (vLLM's)."""


class _Generating(_Request):
    """What both endpoints take."""

    model: str = Field(min_length=1)
    n: Annotated[Int, Field(ge=1)] = 1
    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[Int, Field(ge=-1)] = 0
    """Not OpenAI's: choose among the k most likely tokens only; 0 or -1: among all."""
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Not OpenAI's: leave out tokens less likely than this share of the most likely one's probability."""
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] = 1.0
    """Not OpenAI's: divide the scores of tokens that occurred, in prompt or output. Not just more than 0:
    scores must not overflow."""
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: Int | None = None
    stop: Stops = Field(default_factory=list)
    stop_token_ids: list[Annotated[Int, Field(ge=0)]] = Field(default_factory=list)
    """Not OpenAI's: more ids that end the text."""
    ignore_eos: bool = False
    """Not OpenAI's: go on after the end-of-sequence token."""
    skip_special_tokens: bool = True
    """Not OpenAI's: false shows control tokens as text."""
    keep_alive: KeepAlive | None = None
    """Not OpenAI's: how long the model stays loaded after this request, as Ollama has it; -1: for ever."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None


class CompletionRequest(_Generating):
    """Body of POST /v1/completions."""

    prompt: Prompts | None = None
    """None or an empty string: begin a document."""
    echo: bool = False
    logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    max_tokens: Annotated[Int, Field(ge=0)] | None = None
    best_of: Annotated[Int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool = True
    """Not OpenAI's: false keeps the tokenizer from adding its begin-of-sequence token."""


class ChatMessage(_Request):
    """One turn; other keys go to the chat template as they are."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Content = None


class ChatRequest(_Generating):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MESSAGES_MAX)
    logprobs: bool = False
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Int, Field(ge=1)] | None = None
    """Wins over ``max_tokens``; neither: as many as the context has room for."""
    add_generation_prompt: bool = True
    """Not OpenAI's: false does not open an assistant's turn after the last message."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Not OpenAI's: values for the model's chat template."""


class TokenizeRequest(_Request):
    """Body of POST /tokenize: a prompt, or messages for the chat template."""

    model: str = Field(min_length=1)
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(max_length=MESSAGES_MAX)] | None = None
    add_special_tokens: bool | None = None
    """Default: true for a prompt, false for messages, whose template writes them itself."""
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    return_token_strs: bool = False


class DetokenizeRequest(_Request):
    """Body of POST /detokenize."""

    model: str = Field(min_length=1)
    tokens: list[Annotated[Int, Field(ge=0)]]


# -- responses -----------------------------------------------------------------------------------


class PromptTokensDetails(_Response):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionUsage(_Response):
    """Tokens of a whole request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(_Response):
    """Log probabilities in the form of /v1/completions; the lists run in step."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(_Response):
    """One text."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishWord | None
    """Null on all chunks of a stream but a choice's last."""


class Completion(_Response):
    """Answer of /v1/completions, and each chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None


class ChatTopLogprob(_Response):
    """One of the most likely tokens in a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(ChatTopLogprob):
    """The chosen token in a place, and what was likely there."""

    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(_Response):
    """Log probabilities in the form of /v1/chat/completions."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(_Response):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Response):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishWord


class ChatCompletion(_Response):
    """Answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class ModelObject(_Response):
    """A model as /v1/models lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sllmd"
    max_model_len: int
    """Context in tokens, under vLLM's name."""
    aliases: list[str]
    state: str
    """Whether it is loaded: ``cold``, ``starting``, ``serving``."""


class ModelList(_Response):
    """Answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class TokenizeResponse(_Response):
    """Answer of /tokenize, in vLLM's shape."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(_Response):
    """Answer of /detokenize, in vLLM's shape."""

    prompt: str


class ErrorObject(_Response):
    """What went wrong; all four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(_Response):
    """Every answer that is not a success."""

    error: ErrorObject
