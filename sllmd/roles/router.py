"""One generation's life: find a place for it, turn its token events into text, account for its time.

Owns: the generations under way and the recent ones. Knows nothing of HTTP or of devices, nor on which node a
generation runs: text is made here, whoever made the tokens.
Invariants: text leaves only when it can no longer change; the last delta carries the finish reason, and
nothing follows it; leaving the ``async with`` cancels whatever is still going on, in every state.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from sllmd.core.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelReplaced,
    NotHere,
    SllmdError,
    WorkerLost,
)
from sllmd.core.ids import Digest, GenerationId
from sllmd.engine.protocol import (
    EngineEvent,
    FailedEvent,
    FailureKind,
    FinishedEvent,
    FinishReason,
    GenerationState,
    PrefilledEvent,
    TokenEvent,
    TokenLogprob,
)
from sllmd.migration.settings import MigrationSettings
from sllmd.roles.admission import ReplicaState
from sllmd.roles.agent import Agent
from sllmd.roles.carriage import Carriage
from sllmd.roles.dispatch import Places
from sllmd.roles.generation import Delta, GenerationRequest, Known, TextLogprob, Timing, Usage
from sllmd.roles.library import Library
from sllmd.roles.mover import Mover
from sllmd.roles.settings import ServingSettings
from sllmd.roles.status import ModelCard, PlanStatus, RequestStatus, Tier, told_seconds
from sllmd.roles.work import Granted, Work
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.store import StoredModel
from sllmd.text.stream import TextStream
from sllmd.text.tokenizer import Tokenizer, read_context_tokens

TOKENIZERS_MAX = 32
"""Tokenizers kept in memory; each takes a few to some tens of MB."""

_FAILURES: dict[FailureKind, type[SllmdError]] = {
    "context": ContextLengthExceeded,
    "request": InvalidRequest,
    "internal": WorkerLost,
}


class Router:
    """Starts generations and remembers them."""

    def __init__(
        self,
        library: Library,
        agent: Agent,
        places: Places,
        settings: ServingSettings,
        migration: MigrationSettings = MigrationSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.places = places
        self.migration = migration
        self.mover = Mover(lambda: self.places, migration)
        self._library = library
        self._agent = agent
        self._tokenizers: OrderedDict[Digest, asyncio.Future[Tokenizer]] = OrderedDict()
        self._context_tokens: dict[Digest, int] = {}
        self._running: dict[GenerationId, Generation] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._recent: deque[RequestStatus] = deque(maxlen=settings.recent_requests_max)

    def models(self) -> list[ModelCard]:
        """The catalogue, by name."""
        return [self._card_or_problem(stored) for stored in self._library.models()]

    def model(self, name: str) -> ModelCard:
        """The model that ``name`` or alias stands for. Raises ModelNotFound, and why it cannot be served."""
        stored = self._library.model(name)
        try:
            return self._card(stored, self.checkpoint(name))
        except NotHere:
            return self._remote_card(stored)

    async def prepare(self, name: str) -> ModelCard:
        """The same, once what text needs is on this node. Raises NotHere when nobody has it."""
        stored = self._library.model(name)
        return self._card(stored, await self._library.obtain(name))

    def _card_or_problem(self, stored: StoredModel) -> ModelCard:
        """One bad model must not hide the others."""
        if stored.problem is not None:
            missing = self._library.is_missing(stored)
            return (
                self._remote_card(stored)
                if missing
                else ModelCard(**_stored_facts(stored), problem=stored.problem)
            )
        try:
            return self._card(stored, self.checkpoint(stored.name))
        except NotHere:
            return self._remote_card(stored)
        except SllmdError as error:
            return ModelCard(**_stored_facts(stored), problem=str(error))

    def _card(self, stored: StoredModel, checkpoint: Checkpoint) -> ModelCard:
        residence = self._agent.residence(checkpoint)
        serving = residence is not None and residence.state is ReplicaState.SERVING
        elsewhere = None if residence else self._library.state_elsewhere(stored.name, stored.digest)
        tier: Tier = "device" if serving or elsewhere == "serving" else self._agent.where(checkpoint)
        estimate_seconds = self._agent.startup_estimate_seconds(checkpoint)
        return ModelCard(
            **_stored_facts(stored),
            context_tokens=self._agent.context_tokens(checkpoint, self._context_tokens_of(checkpoint)),
            partitions=len(checkpoint.manifest.partitions),
            tier=tier,
            state=residence.state if residence else elsewhere or "cold",
            startup_estimate_seconds=0.0 if elsewhere == "serving" else estimate_seconds,
            keep_alive_seconds=told_seconds(self._agent.keep_alive_seconds(checkpoint)),
        )

    def _remote_card(self, stored: StoredModel) -> ModelCard:
        """Of a model that this node has not met yet, as other nodes tell of it."""
        fact = self._library.fact(stored.digest)
        if self._library.is_missing(stored):
            facts = _stored_facts(stored)
            return ModelCard(**facts, state="missing", tier="nowhere", problem=stored.problem)
        state = self._library.state_elsewhere(stored.name, stored.digest) or "cold"
        return ModelCard(
            **_stored_facts(stored),
            context_tokens=fact.context_tokens if fact else 0,
            partitions=fact.partitions if fact else 0,
            tier="device" if state == "serving" else "peer",
            state=state,
            problem=stored.problem,
        )

    def _context_tokens_of(self, checkpoint: Checkpoint) -> int:
        digest = checkpoint.manifest.digest
        if digest not in self._context_tokens:
            self._context_tokens[digest] = read_context_tokens(checkpoint.directory)
        return self._context_tokens[digest]

    def checkpoint(self, name: str) -> Checkpoint:
        """What ``name`` or alias stands for, as it is on this node. Raises ModelNotFound, NotHere."""
        return self._library.checkpoint(name)

    async def obtain(self, name: str) -> Checkpoint:
        """The same, fetched from another node if need be: without its weights, if those are not here."""
        return await self._library.obtain(name)

    async def tokenizer(self, name: str) -> Tokenizer:
        """The model's tokenizer, loaded once in a thread. Raises ModelNotFound, NotHere, CheckpointError."""
        checkpoint = await self.obtain(name)
        digest = checkpoint.manifest.digest
        if digest not in self._tokenizers:
            loading = asyncio.ensure_future(asyncio.to_thread(Tokenizer.load, checkpoint.directory))
            self._tokenizers[digest] = loading
            loading.add_done_callback(lambda loaded: self._forget_if_failed(digest, loaded))
            while len(self._tokenizers) > TOKENIZERS_MAX:
                self._tokenizers.popitem(last=False)
        self._tokenizers.move_to_end(digest)
        return await asyncio.shield(self._tokenizers[digest])

    def _forget_if_failed(self, digest: Digest, loaded: asyncio.Future[Tokenizer]) -> None:
        """The next request tries again; only the load that failed is forgotten, not one that followed it."""
        failed = loaded.cancelled() or loaded.exception() is not None
        if failed and self._tokenizers.get(digest) is loaded:
            del self._tokenizers[digest]

    def generate(self, request: GenerationRequest) -> Generation:
        """A generation, not yet begun: errors come while iterating."""
        return Generation(self, request)

    def requests(self) -> list[RequestStatus]:
        """Running ones first, then the recent ones, newest first."""
        return [generation.status() for generation in self._running.values()] + list(self._recent)

    def running(self) -> list[Generation]:
        """Those under way."""
        return list(self._running.values())

    def carry(self, work: Work, known: Iterable[Known] = ()) -> Carriage:
        """What brings a generation through, wherever it runs; ``known``: its events so far."""
        return Carriage(
            work,
            self.places,
            self.migration,
            on_passage=self.mover.observe,
            on_stall=lambda carriage: self.mover.move_soon(carriage, "its tokens stalled"),
            known=known,
        )

    async def idle_within(self, seconds: float) -> bool:
        """Wait that long until nothing is under way; whether nothing is."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def began(self, generation: Generation) -> None:
        """A generation was entered."""
        self._idle.clear()
        self._running[generation.generation_id] = generation

    def ended(self, generation: Generation) -> None:
        """A generation was left, in whatever state."""
        if self._running.pop(generation.generation_id, None) is not None:
            self._recent.appendleft(generation.status())
        if not self._running:
            self._idle.set()


class Generation:
    """Asynchronously iterable over its deltas, once, inside ``async with``."""

    def __init__(self, router: Router, request: GenerationRequest) -> None:
        self.request = request
        self.generation_id = GenerationId(uuid4().hex)
        self.timing = Timing()
        self.usage = Usage(prompt_tokens=len(request.prompt_ids))
        self.prompt_logprobs: tuple[TextLogprob | None, ...] | None = None
        self.carriage: Carriage | None = None
        """Once its model is known."""
        self._router = router
        self._deltas = self._run()
        self._state = "queued"
        self._finish_reason: FinishReason | None = None
        self._error: str | None = None
        self._began_seconds = time.monotonic()
        self._first_token_seconds = 0.0
        self._ended_seconds = 0.0
        self._load_estimate_ms = 0.0

    async def __aenter__(self) -> Self:
        self._router.began(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._deltas.aclose()
        finally:
            self._ended_seconds = time.monotonic()
            if self._finish_reason is None:
                self._state = "failed" if self._error else "cancelled"
            self._router.ended(self)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas

    async def _run(self) -> AsyncGenerator[Delta, None]:
        try:
            checkpoint = await self._router.obtain(self.request.model)
            if self.request.digest not in (None, checkpoint.manifest.digest):
                raise ModelReplaced(
                    f"`{checkpoint.name}` was imported anew while the request was read", retry_after_seconds=0
                )
            tokenizer = await self._router.tokenizer(self.request.model)
            self._state = "loading"
            async with aclosing(self._decode(self._work(checkpoint), tokenizer)) as deltas:
                async for delta in deltas:
                    yield delta
        except SllmdError as error:
            self._error = str(error)
            raise

    def _work(self, checkpoint: Checkpoint) -> Work:
        request = self.request
        return Work(
            request.request_id,
            checkpoint.name,
            checkpoint.manifest.digest,
            GenerationState(
                self.generation_id,
                list(request.prompt_ids),
                request.sampling,
                [event.token_id for event in request.known if isinstance(event, TokenEvent)],
            ),
            request.keep_alive_seconds,
            request.key,
        )

    async def _decode(self, work: Work, tokenizer: Tokenizer) -> AsyncGenerator[Delta, None]:
        request = self.request
        text = TextStream(
            tokenizer,
            prompt_ids=request.prompt_ids,
            stop=request.stop,
            skip_special=request.skip_special_tokens,
        )
        for event in request.known:
            delta = self._delta(event, text, tokenizer)
            if delta is not None:
                yield delta
                if delta.finish_reason is not None:
                    return
        self.carriage = carriage = self._router.carry(work, request.known)
        async with aclosing(carriage.happenings()) as happenings:
            async for happening in happenings:
                if isinstance(happening, Granted):
                    self._note_grant(happening)
                    continue
                delta = self._delta(happening, text, tokenizer)
                if delta is None:
                    continue
                yield delta
                if delta.finish_reason is not None:
                    return
        raise WorkerLost(f"the generation ended without a reason on {self.timing.node or 'this node'}")

    def _delta(self, event: EngineEvent, text: TextStream, tokenizer: Tokenizer) -> Delta | None:
        match event:
            case TokenEvent():
                return self._token_delta(event, text, tokenizer)
            case PrefilledEvent():
                self._note_prefill(event, tokenizer)
                return None
            case FinishedEvent(finish_reason=reason):
                return self._finished(text.flush(), reason)
            case FailedEvent():
                raise _FAILURES[event.kind](event.message)

    def _token_delta(self, event: TokenEvent, text: TextStream, tokenizer: Tokenizer) -> Delta:
        if event.index == 0:
            self._first_token_seconds = time.monotonic()
            self._state = "decode"
        self.usage.completion_tokens = event.index + 1
        if event.finish_reason is FinishReason.STOP:  # a stop token has no text and no log probability
            return self._finished(text.flush(), event.finish_reason, token_count=1)
        piece = text.push(event.token_id)
        tokens = (_as_text(event.logprob, tokenizer),) if event.logprob else ()
        if text.stopped:
            return self._finished(piece, FinishReason.STOP, tokens, token_count=1)
        if event.finish_reason is not None:
            return self._finished(piece + text.flush(), event.finish_reason, tokens, token_count=1)
        return Delta(piece, tokens, token_count=1)

    def _finished(
        self, text: str, reason: FinishReason, tokens: tuple[TextLogprob, ...] = (), *, token_count: int = 0
    ) -> Delta:
        self._finish_reason = reason
        self._state = "finished"
        return Delta(text, tokens, token_count, reason)

    def _note_grant(self, granted: Granted) -> None:
        """Split the wait so far into what the load took and what was queueing."""
        self.timing.node = granted.node
        if self._first_token_seconds:  # it goes on elsewhere
            return
        waited_ms = (time.monotonic() - self._began_seconds) * 1000
        timing = self.timing
        timing.cold = granted.cold
        timing.tier = granted.tier
        timing.stages = granted.stages
        timing.decision = granted.decision
        timing.load_ms = granted.load_ms
        timing.queue_ms = max(0.0, waited_ms - granted.load_ms)
        self._load_estimate_ms = granted.estimate_ms
        self._state = "prefill"

    def _note_prefill(self, event: PrefilledEvent, tokenizer: Tokenizer) -> None:
        self.timing.prefill_ms = event.seconds * 1000
        self.usage.cached_tokens = event.reused_tokens
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = tuple(
                None if logprob is None else _as_text(logprob, tokenizer) for logprob in event.prompt_logprobs
            )

    def status(self) -> RequestStatus:
        """Where the request's time went so far."""
        end_seconds = self._ended_seconds or time.monotonic()
        decode_seconds = end_seconds - self._first_token_seconds if self._first_token_seconds else 0.0
        timing = self.timing
        carriage = self.carriage
        return RequestStatus(
            request_id=self.request.request_id,
            generation_id=self.generation_id,
            model=self.request.model,
            state=self._state,
            cold=timing.cold,
            tier=timing.tier,
            queue_ms=timing.queue_ms,
            load_ms=timing.load_ms,
            load_estimate_ms=self._load_estimate_ms,
            node=timing.node,
            decision=PlanStatus.of(timing.decision) if timing.decision is not None else None,
            stages_ms=timing.stages,
            prefill_ms=timing.prefill_ms,
            decode_ms=decode_seconds * 1000,
            total_ms=(end_seconds - self._began_seconds) * 1000,
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            finish_reason=self._finish_reason,
            error=self._error,
            hops=carriage.hops if carriage else 0,
            moves=tuple(passage.status() for passage in carriage.passages) if carriage else (),
        )


def _stored_facts(stored: StoredModel) -> dict[str, Any]:
    return {
        "name": stored.name,
        "aliases": stored.aliases,
        "created": int(stored.imported_at),
        "architecture": stored.architecture,
        "size_bytes": stored.size_bytes,
        "digest": stored.digest,
        "kind": stored.kind,
    }


def _as_text(logprob: TokenLogprob, tokenizer: Tokenizer) -> TextLogprob:
    return TextLogprob(
        text=tokenizer.token_text(logprob.token_id),
        raw=tokenizer.token_bytes(logprob.token_id),
        logprob=logprob.logprob,
        top=tuple((tokenizer.token_text(i), tokenizer.token_bytes(i), p) for i, p in logprob.top),
    )
