"""The list of all statements of session_service, by subject. A new statement gets an entry here.

`tests/unit/test_statements.py` fails for a statement that is not in the list, and for an entry
whose statement is gone. `bench.million.judge` runs the entries.
"""

from __future__ import annotations

from bench.million.listed import (
    activity,
    agent_lists,
    agent_reads,
    agents,
    checkpoints,
    decisions,
    figures,
    lists,
    machinery,
    searches,
    sessions,
    work,
)

LISTED = (
    *sessions.LISTED,
    *lists.LISTED,
    *activity.LISTED,
    *work.LISTED,
    *decisions.LISTED,
    *figures.LISTED,
    *checkpoints.LISTED,
    *agents.LISTED,
    *agent_reads.LISTED,
    *agent_lists.LISTED,
    *searches.LISTED,
    *machinery.LISTED,
)
