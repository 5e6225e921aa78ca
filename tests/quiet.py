"""Replicas of this process that do nothing by themselves but what their callers need.

A replica begins its housework five seconds after its start. On a busy machine a test runs for
longer, and a pass between two of its steps changes what the second one finds.
"""

from __future__ import annotations

import asyncio

from session_service import loops

#: The loops whose passes change or delete rows and containers: the tests run these passes
#: themselves. Those that carry notices, renew leases and report health go on.
HOUSEWORK = frozenset(
    (
        *("retention", "activity", "live-counts", "figures", "sweep", "policies", "checkpoints"),
        *("agent-index", "agent-roles", "agent-retention", "agent-activity", "agent-figures"),
    )
)


async def end_housework() -> None:
    """End the housework of all replicas that run in this event loop."""
    await loops.end({task for task in asyncio.all_tasks() if task.get_name() in HOUSEWORK})
