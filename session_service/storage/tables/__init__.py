"""The tables as SQLAlchemy Core describes them. `migrations/` creates them, and a test compares the
two.

Each module has the tables of one subject. This package imports all of them, so that `metadata` is
complete after the import of any table. The comparison needs the complete metadata.
"""

from session_service.storage.tables.checkpoint import (
    WRITING,
    checkpoint_chunks,
    checkpoint_numbers,
    checkpoints,
    volumes,
)
from session_service.storage.tables.decision import (
    REQUEST,
    choice_tokens,
    choices,
    decisions,
    session_ends,
)
from session_service.storage.tables.policy import policies, tiers, user_preferences
from session_service.storage.tables.schema import metadata
from session_service.storage.tables.session import (
    LIVE_KEY,
    LIVE_STATES,
    SEEN_LAG,
    activity_passes,
    containers,
    installation,
    orphans,
    session_events,
    sessions,
    sweeps,
)
from session_service.storage.tables.stats import (
    live_session_changes,
    live_session_counts,
    stats_changes,
    stats_gauges,
    stats_progress,
    stats_rollups,
)

__all__ = [
    "LIVE_KEY",
    "LIVE_STATES",
    "REQUEST",
    "SEEN_LAG",
    "WRITING",
    "activity_passes",
    "checkpoint_chunks",
    "checkpoint_numbers",
    "checkpoints",
    "choice_tokens",
    "choices",
    "containers",
    "decisions",
    "installation",
    "live_session_changes",
    "live_session_counts",
    "metadata",
    "orphans",
    "policies",
    "session_ends",
    "session_events",
    "sessions",
    "stats_changes",
    "stats_gauges",
    "stats_progress",
    "stats_rollups",
    "sweeps",
    "tiers",
    "user_preferences",
    "volumes",
]
