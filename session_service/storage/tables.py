"""The tables, as SQLAlchemy Core describes them; `migrations/` builds them, a test compares."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
    }
)

_UUID = UUID(as_uuid=True)
_TIME = sa.DateTime(timezone=True)

#: The index that makes one live session per key true, under any number of replicas.
LIVE_KEY = "sessions_live_key"
#: The index that makes a request id count once, per tenant and method.
REQUEST = "decisions_request"
#: The index that lets one checkpoint of a session be written at a time.
WRITING = "checkpoints_writing"

#: One row: which installation of Roost this database belongs to.
installation = sa.Table(
    "installation",
    metadata,
    sa.Column("installation_id", _UUID, primary_key=True),
    sa.Column("system_identifier", sa.Text, nullable=False),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", _UUID, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("slot", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("transition", sa.Text),
    sa.Column("prior_state", sa.Text),
    sa.Column("owner", _UUID),
    sa.Column("lease_until", _TIME),
    sa.Column("deadline", _TIME),
    sa.Column("decision_id", _UUID),
    sa.Column("wish", JSONB),
    sa.Column("successor_id", _UUID),
    sa.Column("predecessor_id", _UUID),
    sa.Column("pause_depth", sa.Text),
    sa.Column("loss_untold", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("conditions", JSONB, nullable=False, server_default=sa.text("'[]'")),
    sa.Column("spec", JSONB, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("policy", JSONB, nullable=False),
    sa.Column("verified_at", _TIME),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("start_time", _TIME),
    sa.Column("last_active_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("pause_time", _TIME),
    sa.Column("end_time", _TIME),
    sa.Column("purge_time", _TIME),
    sa.Column("due_at", _TIME),
    sa.Column("start_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("end_reason", sa.Text),
    sa.Column("cause", sa.Text),
    sa.Column("failure_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("change_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("hold_until", _TIME),
    sa.Column("holds", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("warn_time", _TIME),
    sa.Column("activity", sa.Text, nullable=False, server_default=""),
    sa.Column("event_sequence", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("checkpoint_id", _UUID),
    sa.Column("untold_continuity", sa.SmallInteger),
    sa.CheckConstraint(
        "state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED', 'ENDING', 'ENDED')", name="state"
    ),
    sa.CheckConstraint(
        "transition IN ('START', 'PAUSE', 'END', 'PURGE', 'REPLACE')", name="transition"
    ),
    # A state that is on its way somewhere has somebody who brings it there, and no other has.
    sa.CheckConstraint(
        "(state IN ('STARTING', 'PAUSING', 'ENDING')) = (transition IS NOT NULL)", name="in_flight"
    ),
    # A touch moves no indexed column, so that it stays a heap-only update; the room left in each
    # page keeps it on its page.
    postgresql_with={"fillfactor": "70"},
)
sa.Index(
    LIVE_KEY,
    sessions.c.tenant,
    sessions.c.project_id,
    sessions.c.user_id,
    sessions.c.slot,
    unique=True,
    postgresql_where=sa.text("state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"),
)
sa.Index(
    "sessions_tenant_created", sessions.c.tenant, sessions.c.create_time, sessions.c.session_id
)
sa.Index(
    "sessions_live_created",
    sessions.c.create_time,
    postgresql_where=sa.text("state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"),
)
sa.Index("sessions_due", sessions.c.due_at, postgresql_where=sessions.c.due_at.is_not(None))
sa.Index(
    "sessions_checkpoint",
    sessions.c.checkpoint_id,
    postgresql_where=sessions.c.checkpoint_id.is_not(None),
)

containers = sa.Table(
    "containers",
    metadata,
    sa.Column(
        "session_id",
        _UUID,
        sa.ForeignKey("sessions.session_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("container_id", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("region", sa.Text, nullable=False, server_default=""),
    sa.Column("boot_id", sa.Text),
    sa.Column("boot_time", _TIME),
    sa.Column("start_time", _TIME),
    sa.Column("cordoned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("wanted", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("destroy_time", _TIME),
)
sa.Index(
    "containers_unwanted",
    containers.c.session_id,
    postgresql_where=sa.text("NOT wanted AND destroy_time IS NULL"),
)
sa.Index(
    "containers_present",
    containers.c.app,
    containers.c.container_id,
    postgresql_where=sa.text("destroy_time IS NULL"),
)

#: What happened to a session: appended with the change itself, numbered under its row's lock.
session_events = sa.Table(
    "session_events",
    metadata,
    sa.Column(
        "session_id",
        _UUID,
        sa.ForeignKey("sessions.session_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("details", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
)
sa.Index("session_events_time", session_events.c.create_time, postgresql_using="brin")

#: One row per app: when its containers are to be compared with the rows next, by one replica.
sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("app", sa.Text, primary_key=True),
    sa.Column("due_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("pass_number", sa.BigInteger, nullable=False, server_default=sa.text("0")),
)

#: Containers that carry our labels and have no row: in how many passes running they were seen.
orphans = sa.Table(
    "orphans",
    metadata,
    sa.Column("app", sa.Text, primary_key=True),
    sa.Column("container_id", sa.Text, primary_key=True),
    sa.Column("pass_number", sa.BigInteger, nullable=False),
    sa.Column("pass_count", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    sa.Column("first_seen_time", _TIME, nullable=False, server_default=sa.func.now()),
)

#: One row per mutating call: what was asked, what was decided and why, what came of it. It has no
#: foreign key, since decisions outlive their sessions.
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("decision_id", _UUID, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("session_id", _UUID),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("mode", sa.Text),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("explanation", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("continuity", sa.SmallInteger),
    sa.Column("continuity_verified", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("joined", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("leader_decision_id", _UUID),
    sa.Column("attempts", JSONB, nullable=False, server_default=sa.text("'[]'")),
    sa.Column("error", JSONB),
    sa.Column("request_id", _UUID),
    sa.Column("request_hash", sa.LargeBinary),
    sa.Column("inputs", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("finish_time", _TIME),
    # None where it is about no project, and in rows older than the column whose session was gone.
    sa.Column("project_id", sa.Text),
    sa.Column("replay_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    # What is counted from an index alone must be on pages that were vacuumed since.
    postgresql_with={
        "autovacuum_vacuum_insert_scale_factor": "0.01",
        "autovacuum_vacuum_insert_threshold": "10000",
    },
)
sa.Index(
    REQUEST,
    decisions.c.tenant,
    decisions.c.method,
    decisions.c.request_id,
    unique=True,
    postgresql_where=decisions.c.request_id.is_not(None),
)
sa.Index("decisions_session", decisions.c.session_id, decisions.c.decision_id)
sa.Index("decisions_time", decisions.c.create_time, postgresql_using="brin")
#: What outcomes took lately. Reuses are most, take no time, and are left out.
sa.Index(
    "decisions_outcome",
    decisions.c.outcome,
    decisions.c.decision_id,
    postgresql_where=sa.text("outcome <> 'REUSED' AND NOT joined"),
)
#: A project's figures: reuses, which are most, are counted from it without a look at their rows.
sa.Index(
    "decisions_project",
    decisions.c.tenant,
    decisions.c.project_id,
    decisions.c.joined,
    decisions.c.outcome,
    decisions.c.create_time,
)
sa.Index(
    "decisions_replayed",
    decisions.c.tenant,
    decisions.c.project_id,
    decisions.c.create_time,
    postgresql_where=sa.text("replay_count > 0"),
)

#: One row per session that is over, which outlives it; `lifetime` is NULL where it never stood.
session_ends = sa.Table(
    "session_ends",
    metadata,
    sa.Column("session_id", _UUID, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("end_time", _TIME, nullable=False),
    sa.Column("lifetime", sa.Interval),
    sa.Column("reason", sa.Text, nullable=False),
)
sa.Index(
    "session_ends_project",
    session_ends.c.tenant,
    session_ends.c.project_id,
    session_ends.c.end_time,
)
sa.Index("session_ends_time", session_ends.c.end_time, postgresql_using="brin")


def _key() -> list[sa.Column[str]]:
    """The columns of a session's key."""
    names = ("tenant", "project_id", "user_id", "slot")
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


#: What projects have set of their policies. Until `spread_until` live sessions are told of it.
policies = sa.Table(
    "policies",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    sa.Column("setting", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("spec", JSONB),
    sa.Column("update_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("spread_until", _TIME),
)
sa.Index(
    "policies_spread",
    policies.c.spread_until,
    postgresql_where=sa.text("spread_until IS NOT NULL"),
)

#: Tenants that have another tier than the operator's default.
tiers = sa.Table(
    "tiers",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("update_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("spread_until", _TIME),
)
sa.Index(
    "tiers_spread",
    tiers.c.spread_until,
    postgresql_where=sa.text("spread_until IS NOT NULL"),
)

#: What users prefer where they would be asked.
user_preferences = sa.Table(
    "user_preferences",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("preference", sa.Text, nullable=False),
    sa.Column("update_time", _TIME, nullable=False, server_default=sa.func.now()),
)

#: What was offered, one row a candidate, by the SHA-256 of its token: the token itself is nowhere.
choice_tokens = sa.Table(
    "choice_tokens",
    metadata,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    *_key(),
    sa.Column("choice", sa.Text, nullable=False),
    sa.Column("session_id", _UUID, nullable=False),
    sa.Column("start_count", sa.BigInteger, nullable=False),
    sa.Column("expected_continuity", sa.SmallInteger, nullable=False),
    sa.Column("checkpoint_id", _UUID),
    sa.Column("offered", JSONB, nullable=False),
    sa.Column("decision_id", _UUID),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("expire_time", _TIME, nullable=False),
)
sa.Index("choice_tokens_expire", choice_tokens.c.expire_time)

#: What was chosen of what, by the decision that did it: asked for, or by a kept preference.
choices = sa.Table(
    "choices",
    metadata,
    sa.Column("decision_id", _UUID, primary_key=True),
    *_key(),
    sa.Column("session_id", _UUID, nullable=False),
    sa.Column("choice", sa.Text, nullable=False),
    sa.Column("checkpoint_id", _UUID),
    sa.Column("offered", JSONB, nullable=False),
    sa.Column("asked", sa.Boolean, nullable=False),
    sa.Column("remember", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
)
sa.Index(
    "choices_key",
    choices.c.tenant,
    choices.c.project_id,
    choices.c.user_id,
    choices.c.slot,
    choices.c.decision_id,
)
sa.Index("choices_time", choices.c.create_time, postgresql_using="brin")

#: One row per key that ever had a checkpoint: its lock is what makes numbers one after the other.
checkpoint_numbers = sa.Table(
    "checkpoint_numbers",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("slot", sa.Text, primary_key=True),
    sa.Column("last_number", sa.BigInteger, nullable=False),
)

#: State that was saved. No foreign key to its session: it outlives that, at the session's key.
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("checkpoint_id", _UUID, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("slot", sa.Text, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("session_id", _UUID, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("parent_id", _UUID),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False, server_default=""),
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("spec", JSONB, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("stored_bytes", sa.BigInteger),
    sa.Column("sha256", sa.LargeBinary),
    sa.Column("place", sa.Text),
    sa.Column("object", sa.Text),
    sa.Column("upload", sa.Text),
    sa.Column("failure", sa.Text),
    sa.Column("decision_id", _UUID),
    sa.Column("lease_until", _TIME),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("ready_time", _TIME),
    sa.CheckConstraint("state IN ('WRITING', 'READY', 'FAILED', 'DELETING')", name="state"),
    # Whoever writes one has a lease on it, and a READY one says where its bytes are.
    sa.CheckConstraint("(state = 'WRITING') = (lease_until IS NOT NULL)", name="lease"),
    sa.CheckConstraint("state <> 'READY' OR place IS NOT NULL", name="place"),
)
sa.Index(
    "checkpoints_number",
    checkpoints.c.tenant,
    checkpoints.c.project_id,
    checkpoints.c.user_id,
    checkpoints.c.slot,
    checkpoints.c.number,
    unique=True,
)
sa.Index("checkpoints_session", checkpoints.c.session_id)
sa.Index("checkpoints_decision", checkpoints.c.decision_id)
sa.Index("checkpoints_parent", checkpoints.c.parent_id)
#: One at a time of a session.
sa.Index(
    WRITING,
    checkpoints.c.session_id,
    unique=True,
    postgresql_where=sa.text("state = 'WRITING'"),
)
#: What the janitor has to look at.
sa.Index(
    "checkpoints_untidy",
    checkpoints.c.create_time,
    postgresql_where=sa.text("state <> 'READY'"),
)

#: The bytes of checkpoints that are small enough: compressed, in pieces, each a statement.
checkpoint_chunks = sa.Table(
    "checkpoint_chunks",
    metadata,
    sa.Column(
        "checkpoint_id",
        _UUID,
        sa.ForeignKey("checkpoints.checkpoint_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("bytes", sa.LargeBinary, nullable=False),
)
