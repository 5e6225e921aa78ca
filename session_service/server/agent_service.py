"""The composition of agent sessions: builds their use cases, and starts their background loops."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_service_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2_grpc as rpc
from session_service import loops
from session_service.agents import retention, rollup
from session_service.agents.branches import Branches
from session_service.agents.conversations import Conversations
from session_service.agents.turns import Turns
from session_service.agents.watch import Watch
from session_service.rpc.agent.servicer import AgentServicer, AgentUseCases
from session_service.storage import activity
from session_service.storage.agent import activity as agent_activity
from session_service.storage.agent import search
from session_service.storage.agent.changes import Changes, ChangeTimings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack
    from datetime import timedelta

    import grpc.aio

    from session_service.config import Config
    from session_service.storage.database import Database

#: How often a replica looks whether a pass over the figures is due, in s.
FIGURES_EVERY = 15.0
SERVICE = pb.DESCRIPTOR.services_by_name["AgentSessionService"].full_name


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Settings that operators do not change, and tests do. Times are in seconds."""

    index_pause: float = 1.0
    """The least time between two runs of the index job. A change starts one."""
    index_interval: float = 10.0
    """Between runs without a change here: another replica may have died before its run."""
    roles_interval: float = 10.0
    """Between runs that fill in the agent's role of messages that an older version indexed."""
    ranked: int = search.RANKED
    """The most matches that a search ranks."""
    search_budget: timedelta = search.BUDGET
    """How long a search looks for matches."""
    changes: ChangeTimings = field(default_factory=ChangeTimings)


async def add(
    stack: AsyncExitStack,
    server: grpc.aio.Server,
    config: Config,
    database: Database,
    settings: AgentSettings | None = None,
    late: Callable[[str], None] | None = None,
) -> Callable[[], None]:
    """Add the agent service to the server; the stack ends its background loops. `late`: see
    `loops.running`.

    Returns a function that ends all open watch streams. Call it before the server stops: those
    streams do not end by themselves, and the server would wait for them for its whole grace.
    """
    settings = settings or AgentSettings()
    changes = Changes(config.direct_url, database, settings.changes)
    conversations = Conversations(
        database,
        config.agent_retention,
        changes.changed,
        search_language=config.search_language,
        ranked=settings.ranked,
        search_budget=settings.search_budget,
    )
    cases = AgentUseCases(
        conversations=conversations,
        turns=Turns(database, changes.changed),
        branches=Branches(database, conversations, changes.changed),
        watch=Watch(database, changes),
        database=database,
        idle_timeout=config.agent_idle_timeout,
        connection_age=config.connection_age,
    )
    rpc.add_AgentSessionServiceServicer_to_server(AgentServicer(cases), server)
    await stack.enter_async_context(changes.running())
    indexing = loops.running(
        "agent-index",
        lambda: search.index(database, config.search_language),
        every=settings.index_interval,
        woken=changes.changed_here,
        min_pause=settings.index_pause,
        quiet=config.quiet.total_seconds(),
        late=late,
    )
    await stack.enter_async_context(indexing)
    filling = loops.running(
        "agent-roles",
        lambda: search.fill_roles(database),
        every=settings.roles_interval,
        after=loops.AFTER_START,
        quiet=config.quiet.total_seconds(),
        late=late,
    )
    await stack.enter_async_context(filling)
    passes = loops.running(
        "agent-retention",
        lambda: retention.run_pass(database, config.agent_retention),
        every=config.retention_interval.total_seconds(),
        after=loops.AFTER_START,
        quiet=config.quiet.total_seconds(),
        late=late,
    )
    await stack.enter_async_context(passes)

    walks = loops.running(
        "agent-activity",
        lambda: activity.walk_if_due(database, agent_activity.SUBJECT, agent_activity.WALK),
        every=activity.LOOK,
        after=loops.AFTER_START,
        quiet=config.quiet.total_seconds(),
        late=late,
        late_after=activity.PERIOD.total_seconds(),
    )
    await stack.enter_async_context(walks)
    rolling = loops.running(
        "agent-figures",
        lambda: rollup.run_pass(database),
        every=FIGURES_EVERY,
        after=loops.AFTER_START,
        quiet=config.quiet.total_seconds(),
        late=late,
        late_after=rollup.HOLD.total_seconds(),
    )
    await stack.enter_async_context(rolling)
    return changes.stop
