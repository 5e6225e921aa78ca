"""The tables, as SQLAlchemy Core describes them; `migrations/` builds them, a test compares.

A module for what belongs together. This one names them all: whoever imports one table has all of
them in `metadata`, which comparing and creating need.
"""

from session_service.storage.tables.checkpoint import (
    WRITING,
    checkpoint_chunks,
    checkpoint_numbers,
    checkpoints,
)
from session_service.storage.tables.choice import choice_tokens, choices
from session_service.storage.tables.decision import REQUEST, decisions, session_ends
from session_service.storage.tables.policy import policies, tiers, user_preferences
from session_service.storage.tables.schema import metadata
from session_service.storage.tables.session import LIVE_KEY, containers, session_events, sessions
from session_service.storage.tables.survey import installation, orphans, sweeps
from session_service.storage.tables.volume import volumes

__all__ = [
    "LIVE_KEY",
    "REQUEST",
    "WRITING",
    "checkpoint_chunks",
    "checkpoint_numbers",
    "checkpoints",
    "choice_tokens",
    "choices",
    "containers",
    "decisions",
    "installation",
    "metadata",
    "orphans",
    "policies",
    "session_ends",
    "session_events",
    "sessions",
    "sweeps",
    "tiers",
    "user_preferences",
    "volumes",
]
