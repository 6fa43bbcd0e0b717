"""What may be asked of the catalogue. Pure.

Revisions: ``expected`` 0 means that there must be no such record yet, None that any will do.
"""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.cluster.catalogue.records import DeploymentSpec, ReplicaState
from sllmd.cluster.codec import Codec, pack, unpack
from sllmd.core.errors import ProtocolError
from sllmd.core.ids import ModelName, NodeId, ReplicaId


@dataclass(frozen=True, slots=True)
class ClientOpen:
    """A client wants its commands remembered. The result's revision is its number from now on."""

    label: str


@dataclass(frozen=True, slots=True)
class EpochBegin:
    """A leader takes its term as epoch; orders of older epochs are refused from here on."""

    epoch: int


@dataclass(frozen=True, slots=True)
class NodeAdmit:
    """A node becomes a member, or a member's facts change."""

    node: NodeId
    name: str
    address: str
    certificate_fingerprint: str
    devices: dict[str, int]
    labels: dict[str, str]
    expected: int | None


@dataclass(frozen=True, slots=True)
class NodeRemove:
    """A node is no member any more; its replica intents go with it."""

    node: NodeId
    expected: int | None


@dataclass(frozen=True, slots=True)
class NodeCordon:
    """A node takes no new replicas, or takes them again."""

    node: NodeId
    cordoned: bool


@dataclass(frozen=True, slots=True)
class DeploymentPut:
    """A model is deployed, or its deployment changes."""

    name: ModelName
    spec: DeploymentSpec
    expected: int | None


@dataclass(frozen=True, slots=True)
class DeploymentDelete:
    """A model is no longer deployed. Refused while replicas of it are meant to exist."""

    name: ModelName
    expected: int | None


@dataclass(frozen=True, slots=True)
class ReplicaIntent:
    """One item of a plan."""

    replica: ReplicaId
    deployment: ModelName
    node: NodeId
    devices: dict[str, int]


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """Replicas that a leader wants, planned on a view that may be old: each is checked on its own."""

    intents: tuple[ReplicaIntent, ...]


@dataclass(frozen=True, slots=True)
class ReplicaMove:
    """A replica's intent goes on to ``state``: ready (confirmed) or draining."""

    replica: ReplicaId
    state: ReplicaState
    expected: int


@dataclass(frozen=True, slots=True)
class ReplicaGone:
    """A replica is gone: drained, failed or lost with its node. ``cause`` is for the log."""

    replica: ReplicaId
    expected: int
    cause: str


@dataclass(frozen=True, slots=True)
class ApiKeyPut:
    """A key is made or replaced."""

    key_id: str
    sha256: str
    scope: str
    expected: int | None


@dataclass(frozen=True, slots=True)
class ApiKeyDelete:
    """A key is revoked."""

    key_id: str


@dataclass(frozen=True, slots=True)
class TokenCreate:
    """A join token is made. Times are wall time as the proposer saw it."""

    token_id: str
    sha256: str
    expires_at_seconds: float
    uses: int


@dataclass(frozen=True, slots=True)
class TokenConsume:
    """A join token is used once; refused when it is spent, expired or another one.

    ``claim`` names who uses it: the same claim again is the same use, so that a node whose answer was lost
    may ask once more.
    """

    token_id: str
    sha256: str
    now_seconds: float
    claim: str = ""


@dataclass(frozen=True, slots=True)
class TokenRevoke:
    """A join token is no longer good."""

    token_id: str


@dataclass(frozen=True, slots=True)
class SettingPut:
    """A setting of the cluster changes."""

    key: str
    value: bytes
    expected: int | None


Body = (
    ClientOpen
    | EpochBegin
    | NodeAdmit
    | NodeRemove
    | NodeCordon
    | DeploymentPut
    | DeploymentDelete
    | ReplicaPlan
    | ReplicaMove
    | ReplicaGone
    | ApiKeyPut
    | ApiKeyDelete
    | TokenCreate
    | TokenConsume
    | TokenRevoke
    | SettingPut
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command and who it is from.

    ``client`` 0 is nobody: such a command is carried out each time that it is committed. Any other client
    numbers its commands; ``answered_below`` says that it has the answers to all lower numbers.
    ``epoch`` is given by leaders only.
    """

    body: Body
    client: int = 0
    seq: int = 0
    answered_below: int = 0
    epoch: int | None = None


BODIES = Codec(
    {
        1: ClientOpen,
        2: EpochBegin,
        3: NodeAdmit,
        4: NodeRemove,
        5: NodeCordon,
        6: DeploymentPut,
        7: DeploymentDelete,
        8: ReplicaPlan,
        9: ReplicaMove,
        10: ReplicaGone,
        11: ApiKeyPut,
        12: ApiKeyDelete,
        13: TokenCreate,
        14: TokenConsume,
        15: SettingPut,
        16: TokenRevoke,
    }
)


def pack_command(command: Command) -> bytes:
    """A command as an entry's data."""
    header = [command.client, command.seq, command.answered_below, command.epoch]
    return pack([*header, BODIES.encode(command.body)])


def unpack_command(data: bytes) -> Command:
    """The inverse; raises ProtocolError."""
    match unpack(data):
        case [int(client), int(seq), int(answered_below), int() | None as epoch, list(body)]:
            return Command(BODIES.decode(body), client, seq, answered_below, epoch)
    raise ProtocolError("not a catalogue command")
