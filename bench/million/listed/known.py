"""Values that the seed has put into the database, and those that every module's binds have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from bench.million.statements import Limit, Lookup

#: An update of a column that is indexed.
MOVED = Limit(per_row=80, because="the row enters each of the 20 indexes of its table again")
#: A batch of which no row is as expected.
LOOKED_UP = Limit(pages=1_000, because="looks each of 100 ids up, and finds nothing to do")
#: An id that no row has.
NOBODY = UUID(int=1 << 100)
#: The epoch of every session.
EPOCH = 9
APP = "roost-local"
PAUSING = UUID(int=1)
#: An ended session at whose key no session is live.
REVIVABLE = UUID(int=12)
_ID = "lpad(to_hex(({})::bigint), 32, '0')::uuid"
#: One of the newest sessions, ACTIVE and with a checkpoint. It is alone at its key.
ACTIVE = Lookup(f"SELECT {_ID.format('%(count)s - 10')}")
PAUSED = Lookup(f"SELECT {_ID.format('%(count)s - 1')}")
ENDED = Lookup(f"SELECT {_ID.format('%(count)s / 2')}")
#: The last session: the one of user `u0`, whose key has a thousand checkpoints.
CROWDED = Lookup(f"SELECT {_ID.format('%(count)s')}")
_OF_ACTIVE = f"FROM sessions WHERE session_id = {_ID.format('%(count)s - 10')}"
PROJECT = Lookup(f"SELECT project_id {_OF_ACTIVE}")
USER = Lookup(f"SELECT user_id {_OF_ACTIVE}")
POLICY = Lookup(f"SELECT policy::text {_OF_ACTIVE}")
VERSION = Lookup(f"SELECT policy ->> 'version' {_OF_ACTIVE}")
BASE = Lookup(f"SELECT policy ->> 'base' {_OF_ACTIVE}")
FINGERPRINT = Lookup(f"SELECT fingerprint {_OF_ACTIVE}")
DUE_AT = Lookup(f"SELECT due_at {_OF_ACTIVE}")
CHECKPOINT = Lookup(f"SELECT checkpoint_id {_OF_ACTIVE}")
WRITING = Lookup("SELECT checkpoint_id FROM checkpoints WHERE state = 'WRITING'")
WRITTEN_OF = Lookup("SELECT session_id FROM checkpoints WHERE state = 'WRITING'")
FAILED = Lookup("SELECT min(checkpoint_id::text) FROM checkpoints WHERE state = 'FAILED'")
DECISION = Lookup(
    "SELECT max(decision_id::text) FROM decisions"
    f" WHERE session_id = {_ID.format('%(count)s - 10')}"
)
REQUEST = Lookup(
    f"SELECT max(request_id::text) FROM decisions WHERE session_id = {_ID.format('%(count)s - 10')}"
)
TOKEN = Lookup("SELECT sha256((%(count)s - 10)::text::bytea)")
#: Sessions that a batch is about, and their epochs.
MANY = Lookup(
    f"SELECT array_agg({_ID.format('n')}) FROM generate_series(%(count)s - 99, %(count)s) AS n"
)
#: The sessions of a batch that ended long ago, their epochs, and when they are due.
_LONG_ENDED = f"""FROM sessions WHERE session_id IN (
    SELECT {_ID.format("n")} FROM generate_series(100, least(1099, %(count)s / 2)) AS n)"""
LONG_ENDED = Lookup(f"SELECT array_agg(session_id ORDER BY session_id) {_LONG_ENDED}")
THEIR_EPOCHS = Lookup(f"SELECT array_agg(epoch ORDER BY session_id) {_LONG_ENDED}")
THEIR_DUE = Lookup(f"SELECT array_agg(due_at ORDER BY session_id) {_LONG_ENDED}")
EPOCHS = Lookup("SELECT array_agg(9) FROM generate_series(1, 100)")
INSTALLATION = Lookup("SELECT installation_id FROM installation")
BOUND_TO = Lookup("SELECT system_identifier FROM installation")

NOW = datetime.now(UTC)
NEVER = NOW + timedelta(days=3650)
ALWAYS = NOW - timedelta(days=3650)
#: Older than every row, and younger than every row.
AGE_OF_NONE, AGE_OF_ALL = timedelta(days=3650), timedelta(days=-1)

#: The binds of a new decision.
DECIDED: dict[str, object] = {
    "d_decision_id": NOBODY,
    "d_tenant": "default",
    "d_session_id": ACTIVE,
    "d_method": "StartSession",
    "d_mode": "CONTINUE",
    "d_rule": "SEEN_LATELY",
    "d_explanation": "it was seen running within the window",
    "d_outcome": "REUSED",
    "d_continuity": 4,
    "d_continuity_verified": True,
    "d_joined": False,
    "d_leader_decision_id": None,
    "d_attempts": "[]",
    "d_error": None,
    "d_request_id": NOBODY,
    "d_request_hash": bytes(32),
    "d_inputs": "{}",
    "d_project_id": None,
}
#: The binds of sessions, containers, decisions, checkpoints, policies.
DEFAULTS: dict[str, object] = {
    **DECIDED,
    "tenant": "default",
    "session_id": ACTIVE,
    "epoch": EPOCH,
    "epochs": EPOCHS,
    "session_ids": MANY,
    "ids": MANY,
    "project_id": PROJECT,
    "user_id": USER,
    "slot": "default",
    "most": 100,
    "size": 51,
    "freshness": timedelta(seconds=10),
    "base": BASE,
    "fingerprint": FINGERPRINT,
    "policy": POLICY,
    "app": APP,
    "decision_id": DECISION,
    "checkpoint_id": CHECKPOINT,
    "token_hash": TOKEN,
    "lease": timedelta(seconds=10),
    "budget": timedelta(minutes=2),
    "owner": NOBODY,
    "e_type": None,
    "e_details": "{}",
    "number": 2,
    "generation": 2,
    "every": timedelta(minutes=5),
    "spread": timedelta(minutes=5),
}
