"""Everything that can go wrong, by fault and by whether trying again helps.

::

    SllmdError
    ├── CallerError                 the request is at fault: change it, do not repeat it
    │   ├── InvalidRequest          a field's value, type or absence
    │   ├── UnsupportedParameter    a known field that this server does not serve
    │   ├── ModelNotFound
    │   ├── ContextLengthExceeded
    │   ├── BodyTooLarge
    │   ├── InvalidApiKey
    │   ├── RecordNotFound          no node, deployment or key of the cluster has this name
    │   └── Conflict                what is asked for does not fit what is
    ├── BusyError                   nothing is broken: try again after ``retry_after_seconds``
    │   ├── QueueFull
    │   ├── StartupTimeout
    │   ├── MemoryBusy              it fits, once loads and replicas that go now are gone
    │   ├── ModelReplaced           the name stands for other bytes than when the request came
    │   ├── NodeDraining
    │   └── ControlUnavailable      nobody leads, or the control store does not answer
    ├── OutcomeUnknown              a change was asked for, and whether it took effect cannot be told
    ├── LoadError                   a model cannot be brought up
    │   ├── InsufficientCapacity    what it needs is more than this node has
    │   ├── LoadStalled             no byte arrived for the stall time-out
    │   ├── SourceUnavailable       a remote source refuses, cuts off or lies
    │   ├── SourceChanged           a remote source changed while it was read
    │   └── ModelLoadFailed         the engine could not build the model
    ├── CheckpointError             bytes on disk are not what they should be
    │   ├── MalformedCheckpoint     cannot be understood
    │   ├── UnsupportedCheckpoint   understood, and not something sllmd serves
    │   └── ChecksumMismatch        a chunk differs from what was imported
    ├── StoreError                  the store cannot take or give something (full, locked, denied)
    │   └── PathNotFound            a file or directory that somebody named is not there
    ├── JournalError                the cluster's journal on this node
    │   ├── JournalCorrupt          synced bytes came back changed: this node must not vote on them
    │   └── JournalFailed           the disk refused a write or a sync (EIO, full): this node stops agreeing
    ├── PeerError                   another node of the cluster did not do what it was asked
    │   ├── PeerUnreachable         no connection to it, or the connection broke
    │   ├── PeerRefused             it, or we, will not talk: identity, cluster, token or protocol version
    │   ├── DeadlineExceeded        it did not answer in time
    │   └── NotHere                 it has not what it was asked for, whatever the table said
    ├── WorkerLost                  the process that ran a generation is gone
    ├── ProtocolError               a process of ours sent bytes that are no message
    └── ConfigError                 the configuration cannot be used

Each message names the cause; ``hint`` names the remedy.
"""

from __future__ import annotations


class SllmdError(Exception):
    """Base of every error that sllmd raises on purpose."""

    code = "internal_error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class CallerError(SllmdError):
    """The request is at fault; ``param`` names the field, where there is one."""

    code = "invalid_value"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(CallerError):
    """A field's value or type is wrong, or a required one is missing."""


class UnsupportedParameter(CallerError):
    """A field that is known and not served here."""

    code = "unsupported_parameter"


class ModelNotFound(CallerError):
    """No model or alias has this name."""

    code = "model_not_found"


class ContextLengthExceeded(CallerError):
    """Prompt and completion do not fit into the model's context."""

    code = "context_length_exceeded"


class BodyTooLarge(CallerError):
    """The request's body is over ``[api] body_max_bytes``."""

    code = "body_too_large"


class InvalidApiKey(CallerError):
    """A key is required and the one given, if any, is not known."""

    code = "invalid_api_key"


class RecordNotFound(CallerError):
    """No node, deployment or key of the cluster has this name."""

    code = "not_found"


class Conflict(CallerError):
    """What is asked for does not fit what is: another revision, a name that is taken, a node that lives."""

    code = "conflict"


class BusyError(SllmdError):
    """Nothing is broken; ``retry_after_seconds`` is an estimate, not a politeness."""

    def __init__(self, message: str, *, retry_after_seconds: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(BusyError):
    """The bounded queue in front of a model has no room."""

    code = "queue_full"


class StartupTimeout(BusyError):
    """A request waited longer than ``[api] queue_timeout`` for its model."""

    code = "startup_timeout"


class MemoryBusy(BusyError):
    """The memory a model needs is there, and others hold it just now."""

    code = "memory_busy"


class ModelReplaced(BusyError):
    """The model was imported anew between reading a request and running it."""

    code = "model_replaced"


class NodeDraining(BusyError):
    """This node takes no new work."""

    code = "node_draining"


class ControlUnavailable(BusyError):
    """The cluster cannot agree just now: nobody leads, or its control store does not answer."""

    code = "control_unavailable"


class OutcomeUnknown(SllmdError):
    """A change was asked for and no answer came: it may have taken effect, or may yet do so."""

    code = "outcome_unknown"


class LoadError(SllmdError):
    """A model cannot be brought up; the same request would meet the same fate."""

    code = "model_load_failed"


class InsufficientCapacity(LoadError):
    """The model needs more of a resource than this node has in all."""

    code = "insufficient_capacity"


class ModelMissing(LoadError):
    """The cluster has a model, and no node that is here has its bytes."""

    code = "model_missing"


class LoadStalled(LoadError):
    """A load made no progress for the stall time-out."""


class SourceUnavailable(LoadError):
    """A remote source refuses, cuts off, or sends other bytes than it announced."""


class SourceChanged(LoadError):
    """A remote source changed between two reads of one load."""


class ModelLoadFailed(LoadError):
    """The engine could not build the model; the message is the worker's real last error."""


class CheckpointError(SllmdError):
    """A checkpoint's bytes are not what they should be."""

    code = "model_load_failed"


class MalformedCheckpoint(CheckpointError):
    """A checkpoint file cannot be understood."""


class UnsupportedCheckpoint(CheckpointError):
    """A checkpoint is understood and is not something sllmd serves."""


class ChecksumMismatch(CheckpointError):
    """A chunk differs from what was imported."""

    def __init__(self, *, file: str, chunk_index: int, quarantined_to: str | None = None) -> None:
        moved = f"; the bad copy was moved to {quarantined_to}" if quarantined_to else ""
        super().__init__(
            f"checksum mismatch in {file}, chunk {chunk_index}{moved}",
            hint="import the model again, or `sllmd rm` it, which deletes the bad copy;"
            " if it comes back, test the disk and the memory",
        )
        self.file = file
        self.chunk_index = chunk_index


class StoreError(SllmdError):
    """The store cannot take or give something: full, locked, denied, not there."""

    code = "store_error"


class PathNotFound(StoreError):
    """A file or directory that somebody named is not there."""

    code = "path_not_found"


class JournalError(SllmdError):
    """The cluster's journal on this node cannot be used."""

    code = "journal_error"


class JournalCorrupt(JournalError):
    """Bytes that had been synced came back changed, or are gone; nothing was cut or repaired."""


class JournalFailed(JournalError):
    """The disk refused a write or a sync. It is never tried again: what reached the disk is unknown."""


class PeerError(SllmdError):
    """Another node of the cluster did not do what it was asked."""

    code = "peer_error"


class PeerUnreachable(PeerError):
    """There is no connection to another node, or it broke.

    ``in_doubt``: the request had been sent, so it may have been carried out.
    """

    code = "peer_unreachable"

    def __init__(self, message: str, *, in_doubt: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.in_doubt = in_doubt


class PeerRefused(PeerError):
    """Two nodes will not talk: wrong identity, cluster, token or protocol version. Repeating is no use."""

    code = "peer_refused"


class DeadlineExceeded(PeerError):
    """Another node did not answer in time; what it was asked to do may have been done."""

    code = "deadline_exceeded"


class NotHere(PeerError):
    """Another node was asked for a model or a file that it has not: the asker's table is out of date."""

    code = "not_here"


class WorkerLost(SllmdError):
    """The process that ran a generation is gone; its model comes back on the next request."""

    code = "worker_lost"


class ProtocolError(SllmdError):
    """Another process sent bytes that are no message, or too many of them."""


class ConfigError(SllmdError, ValueError):
    """The configuration cannot be used as it stands.

    A ValueError too, so that pydantic reports one raised by a validator with the key's place.
    """

    code = "config_error"
