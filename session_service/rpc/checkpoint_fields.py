"""CheckpointService's requests into the service's words. Raises InvalidField and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from roost.session.v1 import checkpoint_service_pb2 as pb
from session_service.checkpoints import going_back, taking
from session_service.domain.checkpoint import Kind
from session_service.domain.decision import Request
from session_service.errors import InvalidField
from session_service.rpc import pages
from session_service.rpc.convert import parse_key
from session_service.rpc.fields import Fields
from session_service.rpc.hashing import request_hash
from session_service.storage.checkpoint_lists import TOP

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.session import Key

LABEL_LIMIT = 128
_KINDS: dict[int, Kind | None] = {
    pb.Checkpoint.KIND_UNSPECIFIED: None,
    pb.Checkpoint.KIND_APPLICATION: Kind.APPLICATION,
    pb.Checkpoint.KIND_VOLUME: Kind.VOLUME,
}


@dataclass(frozen=True, slots=True)
class WantedPage:
    """A page of checkpoints: of a key, or of the key of a session."""

    key: Key | None
    session_id: UUID | None
    size: int
    page_token: str

    def below(self, key: Key) -> int:
        """Where the page begins: numbers below this. Raises InvalidField."""
        if not self.page_token:
            return TOP
        (text,) = pages.read(self.page_token, _listing(key), 1)
        if not text.isascii() or not text.isdigit() or int(text) > TOP:
            raise InvalidField.of("page_token", "cannot be read; begin without one")
        return int(text)

    def token(self, key: Key, last: int) -> str:
        """Where the page after this number goes on."""
        return pages.make(_listing(key), [str(last)])


def _listing(key: Key) -> str:
    return pages.digest("checkpoints", key.tenant, key.project_id, key.user_id, key.slot)


def parse_create(request: pb.CreateCheckpointRequest, tenant: str) -> taking.Wanted:
    """A checkpoint to take."""
    fields = Fields()
    session_id = fields.uuid("session_id", request.session_id)
    request_id = fields.optional_uuid("request_id", request.request_id)
    kind = fields.choice("kind", request.kind, _KINDS, None)
    fields.text("label", request.label, LABEL_LIMIT)
    fields.done()
    made = Request(tenant, "CreateCheckpoint", request_hash(request), request_id)
    return taking.Wanted(made, session_id, kind, request.label)


def parse_id(value: str) -> UUID:
    """A checkpoint's id."""
    fields = Fields()
    checkpoint_id = fields.uuid("checkpoint_id", value)
    fields.done()
    return checkpoint_id


def parse_list(request: pb.ListCheckpointsRequest, tenant: str) -> WantedPage:
    """A page to list."""
    fields = Fields()
    size = fields.page_size(request.page_size)
    key = session_id = None
    match request.WhichOneof("of"):
        case "key":
            key = parse_key(fields, tenant, request.key, present=True)
        case "session_id":
            session_id = fields.uuid("session_id", request.session_id)
        case _:
            fields.wrong("key", "must be set, or session_id")
    fields.done()
    return WantedPage(key, session_id, size, request.page_token)


def parse_restore(request: pb.RestoreCheckpointRequest, tenant: str) -> going_back.Wanted:
    """A session to put back."""
    fields = Fields()
    session_id = fields.uuid("session_id", request.session_id)
    request_id = fields.optional_uuid("request_id", request.request_id)
    checkpoint_id, number = None, 0
    match request.WhichOneof("checkpoint"):
        case "checkpoint_id":
            checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
        case "number":
            number = request.number
            if number < 1:
                fields.wrong("number", "must be 1 or more")
        case _:
            fields.wrong("checkpoint_id", "must be set, or number")
    fields.done()
    made = Request(tenant, "RestoreCheckpoint", request_hash(request), request_id)
    return going_back.Wanted(made, session_id, checkpoint_id, number)


def parse_fork(request: pb.ForkSessionRequest, tenant: str) -> tuple[Request, Key, UUID]:
    """A fork: which key, from which checkpoint."""
    fields = Fields()
    key = parse_key(fields, tenant, request.key, present=request.HasField("key"))
    checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
    request_id = fields.optional_uuid("request_id", request.request_id)
    fields.done()
    made = Request(tenant, "ForkSession", request_hash(request), request_id)
    return made, key, checkpoint_id


def parse_named(
    request: pb.DeleteCheckpointRequest | pb.PinCheckpointRequest, method: str, tenant: str
) -> tuple[Request, UUID]:
    """A call about one checkpoint."""
    fields = Fields()
    checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
    request_id = fields.optional_uuid("request_id", request.request_id)
    fields.done()
    return Request(tenant, method, request_hash(request), request_id), checkpoint_id
