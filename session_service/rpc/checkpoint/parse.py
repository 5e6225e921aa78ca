"""CheckpointService's requests, checked and converted. Functions raise InvalidField only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from roost.session.v1 import checkpoint_service_pb2 as pb
from session_service.domain.checkpoint import Kind
from session_service.domain.decision import Request
from session_service.errors import InvalidField
from session_service.rpc import fields as rpc_fields
from session_service.rpc.fields import Fields, parse_key, request_hash
from session_service.save.service import Save
from session_service.start.facts import Restore
from session_service.storage.checkpoint.reads import TOP

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
    """A page of checkpoints: of `key`, or of the key of the session `session_id`.

    The page token cannot be read before the key is known, since it is bound to the key.
    """

    key: Key | None
    session_id: UUID | None
    size: int
    page_token: str

    def below(self, key: Key) -> int:
        """The page has checkpoints with numbers below this one. Raises InvalidField."""
        if not self.page_token:
            return TOP
        (text,) = rpc_fields.read_page_token(self.page_token, _listing(key), 1)
        if not text.isascii() or not text.isdigit() or int(text) > TOP:
            raise InvalidField.of(
                "page_token", "is malformed; leave it empty to begin with the first page"
            )
        return int(text)

    def token(self, key: Key, last: int) -> str:
        """The token for the page after the checkpoint with number `last`."""
        return rpc_fields.make_page_token(_listing(key), [str(last)])


def _listing(key: Key) -> str:
    return rpc_fields.listing_digest(
        "checkpoints", key.tenant, key.project_id, key.user_id, key.slot
    )


def parse_create(request: pb.CreateCheckpointRequest, tenant: str) -> Save:
    """The arguments of CreateCheckpoint."""
    fields = Fields()
    session_id = fields.uuid("session_id", request.session_id)
    request_id = fields.optional_uuid("request_id", request.request_id)
    kind = fields.choice("kind", request.kind, _KINDS, None)
    fields.text("label", request.label, LABEL_LIMIT)
    fields.done()
    body = Request(tenant, "CreateCheckpoint", request_hash(request), request_id)
    return Save(body, session_id, kind, request.label)


def parse_id(value: str) -> UUID:
    """A checkpoint's id."""
    fields = Fields()
    checkpoint_id = fields.uuid("checkpoint_id", value)
    fields.done()
    return checkpoint_id


def parse_list(request: pb.ListCheckpointsRequest, tenant: str) -> WantedPage:
    """The requested page."""
    fields = Fields()
    size = fields.page_size(request.page_size)
    key = session_id = None
    match request.WhichOneof("of"):
        case "key":
            key = parse_key(fields, tenant, request.key, present=True)
        case "session_id":
            session_id = fields.uuid("session_id", request.session_id)
        case _:
            fields.wrong("key", "must be set unless session_id is")
    fields.done()
    return WantedPage(key, session_id, size, request.page_token)


def parse_restore(request: pb.RestoreCheckpointRequest, tenant: str) -> Restore:
    """The arguments of RestoreCheckpoint: the session, and the checkpoint by id or by number."""
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
            fields.wrong("checkpoint_id", "must be set unless number is")
    fields.done()
    body = Request(tenant, "RestoreCheckpoint", request_hash(request), request_id)
    return Restore(body, session_id, checkpoint_id, number)


def parse_fork(request: pb.ForkSessionRequest, tenant: str) -> tuple[Request, Key, UUID]:
    """The arguments of ForkSession: the new session's key, and the checkpoint."""
    fields = Fields()
    key = parse_key(fields, tenant, request.key, present=request.HasField("key"))
    checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
    request_id = fields.optional_uuid("request_id", request.request_id)
    fields.done()
    body = Request(tenant, "ForkSession", request_hash(request), request_id)
    return body, key, checkpoint_id


def parse_named(
    request: pb.DeleteCheckpointRequest | pb.PinCheckpointRequest, method: str, tenant: str
) -> tuple[Request, UUID]:
    """The arguments of a call on one checkpoint."""
    fields = Fields()
    checkpoint_id = fields.uuid("checkpoint_id", request.checkpoint_id)
    request_id = fields.optional_uuid("request_id", request.request_id)
    fields.done()
    return Request(tenant, method, request_hash(request), request_id), checkpoint_id
