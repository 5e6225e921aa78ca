"""Any order of calls, crashes, faults and ticks keeps the rules: over a real PostgreSQL.

Two replicas share a database and a cloud in memory. Time is moved by moving every row and every
machine back. After each step the rules that hold always are checked; at the end all is left to
quiet down, and then nothing may be in flight, leaked, or lost without a reason.

`ROOST_HISTORIES=n` plays so many instead of a few.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import hypothesis
import psycopg
import pytest
import uuid_utils.compat as uuids
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from session_service import errors
from session_service.domain.decision import Request
from session_service.domain.session import ContainerState, Continuity, Key, Mode, PauseDepth
from session_service.domain.wish import Wish
from session_service.lifecycle.intents import Start
from session_service.lifecycle.rests import Named
from tests.property.memory_containers import Cloud
from tests.property.replica import MortalDatabase, Replica, config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_service.lifecycle.joining import Answer

HISTORIES = int(os.environ.get("ROOST_HISTORIES", "12"))
STEPS = 25
USERS = ("wren", "kite")
USER = st.sampled_from(USERS)
REPLICA = st.sampled_from((0, 1))
#: How many provider calls and commits a replica has left; mostly it lives.
CRASH = st.one_of(st.none(), st.none(), st.integers(0, 24))
FAULT = st.one_of(
    st.none(),
    st.none(),
    st.tuples(
        st.sampled_from(
            ("create", "get", "list", "wait_started", "read_boot_id", "resume", "suspend", "stop",
             "destroy", "cordon", "uncordon", "acquire_lease", "wait_resting")
        ),
        st.sampled_from(("before", "after")),
    ),
)  # fmt: skip
#: What the provider, or an application, does by itself.
EVENTS = ("suspend", "stop", "wake", "crash", "drop", "destroy")
#: Timestamps of every table that time goes by in.
TIMES = {
    "sessions": (
        "lease_until", "deadline", "verified_at", "create_time", "start_time", "last_active_time",
        "pause_time", "end_time", "purge_time", "due_at", "change_time", "hold_until", "warn_time",
    ),
    "containers": ("boot_time", "start_time", "create_time", "destroy_time"),
    "sweeps": ("due_at",),
}  # fmt: skip
TABLES = "sessions, containers, decisions, session_events, sweeps, orphans"


class Stage:
    """What outlives one history: the loop, the database, its connections."""

    def __init__(self, url: str, runner: asyncio.Runner) -> None:
        self.url = url
        self.run = runner.run
        self.databases = [MortalDatabase(url, max_size=4) for _ in range(2)]
        self.sql = psycopg.connect(url, autocommit=True)

    async def open(self) -> None:
        """Open the pools."""
        for database in self.databases:
            database.passing = lambda name, moment: None
            await database.__aenter__()

    async def close(self) -> None:
        """Close everything."""
        for database in self.databases:
            database.passing = lambda name, moment: None
            await database.__aexit__()
        self.sql.close()


class History(RuleBasedStateMachine):
    """One history; `stage` is set by whoever plays it."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.stage.sql.execute(f"TRUNCATE {TABLES} CASCADE")
        self.cloud = Cloud()
        self.replicas = [
            Replica(database, self.cloud, config(self.stage.url))
            for database in self.stage.databases
        ]
        self.clicks: dict[str, int] = {}
        """What the user's counter showed when it was last looked at, by machine."""

    # --- what can happen -------------------------------------------------------------------------

    @rule(
        user=USER,
        at=REPLICA,
        mode=st.sampled_from((Mode.CONTINUE, Mode.CONTINUE, Mode.FRESH, Mode.FAIL_IF_LIVE)),
        least=st.sampled_from((None, None, Continuity.FILESYSTEM, Continuity.MEMORY)),
        crash=CRASH,
        fault=FAULT,
    )
    def start(
        self,
        user: str,
        at: int,
        mode: Mode,
        least: Continuity | None,
        crash: int | None,
        fault: tuple[str, str] | None,
    ) -> None:
        """A user opens the project, and clicks once if it is there."""
        self._start(user, at, Wish(mode, None, least), crash, fault)

    @rule(user=USER, at=REPLICA)
    def visit(self, user: str, at: int) -> None:
        """A plain start, with nothing in its way: it must succeed."""
        answer = self._start(user, at, Wish(Mode.CONTINUE), None, None)
        assert answer is not None, "refused with nothing in its way"

    @rule(user=USER, at=REPLICA, what=st.sampled_from(EVENTS))
    def visit_after(self, user: str, at: int, what: str) -> None:
        """The same after the provider did something by itself."""
        self.provider(user, what)
        self.visit(user, at)

    @rule(
        user=USER,
        at=REPLICA,
        what=st.sampled_from(("suspend", "stop", "end", "end now", "undelete", "touch", "hold")),
        crash=CRASH,
        fault=FAULT,
    )
    def call(
        self, user: str, at: int, what: str, crash: int | None, fault: tuple[str, str] | None
    ) -> None:
        """A call about the user's newest session."""
        found = self.stage.sql.execute(
            "SELECT session_id FROM sessions WHERE user_id = %s ORDER BY session_id DESC LIMIT 1",
            [user],
        ).fetchone()
        if found is None:
            return
        replica, session_id = self.replicas[at], UUID(str(found[0]))
        cases = replica.wired.cases
        named = Named(Request("default", what, os.urandom(8), uuids.uuid7()), session_id)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "suspend": lambda: cases.rests.pause(named, PauseDepth.SUSPENDED),
            "stop": lambda: cases.rests.pause(named, PauseDepth.STOPPED),
            "end": lambda: cases.rests.end(named, now=False),
            "end now": lambda: cases.rests.end(named, now=True),
            "undelete": lambda: cases.rests.undelete(named),
            "touch": lambda: cases.lookups.touch("default", session_id, "typing"),
            "hold": lambda: cases.holding.put("default", session_id, "b", timedelta(minutes=40)),
        }
        self._call(replica, calls[what], crash, fault)

    @rule(at=REPLICA, crash=CRASH, fault=FAULT)
    def keep(self, at: int, crash: int | None, fault: tuple[str, str] | None) -> None:
        """A keeper's pass."""
        keeper = self.replicas[at].wired.background.keeper
        self._call(self.replicas[at], keeper.settle, crash, fault)

    @rule(at=REPLICA, crash=CRASH, fault=FAULT)
    def sweep(self, at: int, crash: int | None, fault: tuple[str, str] | None) -> None:
        """A sweeper's pass, and the discarder's."""
        self._call(self.replicas[at], lambda: self._sweep(self.replicas[at]), crash, fault)

    @rule(minutes=st.sampled_from((0.1, 1, 6, 31, 31, 250)))
    def tick(self, minutes: float) -> None:
        """Time goes by."""
        self._tick(timedelta(minutes=minutes))

    @rule(user=USER, what=st.sampled_from(EVENTS))
    def provider(self, user: str, what: str) -> None:
        """The provider, or the application, does something by itself."""
        for machine in self._machines(user):
            if what == "suspend" and machine.state is ContainerState.STARTED:
                machine.state, machine.snapshot = ContainerState.SUSPENDED, True
            elif what == "stop" and machine.state is ContainerState.STARTED:
                machine.state = ContainerState.STOPPED
            elif what == "wake" and machine.state is ContainerState.SUSPENDED:
                machine.state = ContainerState.STARTED
                machine.start_time = self.cloud.now
                if not machine.snapshot:
                    self.cloud.boot(machine)
            elif what == "crash" and machine.state is ContainerState.STARTED:
                self.cloud.boot(machine)
            elif what == "drop":
                machine.snapshot = False
            elif what == "destroy":
                machine.state = ContainerState.DESTROYED

    # --- rules that hold always ------------------------------------------------------------------

    @invariant()
    def no_two_machines_of_one_generation(self) -> None:
        """Create never duplicates."""
        names = [m.name for m in self.cloud.machines.values() if not _gone(m)]
        assert len(names) == len(set(names)), names

    @invariant()
    def nothing_is_destroyed_that_a_session_stands_on(self) -> None:
        """What calls of ours destroyed is of no live session's current generation."""
        live = self._live_containers()
        destroyed = {m.address.container_id for m in self.cloud.destroyed}
        assert not live & destroyed, live & destroyed

    @invariant()
    def loss_was_proved(self) -> None:
        """What the rows call gone is gone at the provider, or never was there."""
        rows = self.stage.sql.execute(
            "SELECT container_id FROM containers"
            " WHERE destroy_time IS NOT NULL AND container_id IS NOT NULL"
        ).fetchall()
        for (container_id,) in rows:
            assert _gone(self.cloud.machines[container_id]), container_id

    def teardown(self) -> None:
        """All faults over, everything comes to rest by itself, and nothing is leaked."""
        for replica in self.replicas:
            self.stage.run(replica.bury())
        for _ in range(12):
            self._tick(timedelta(minutes=6))
            for replica in self.replicas:
                self.stage.run(replica.wired.background.keeper.settle())
                self.stage.run(self._sweep(replica))
        self._nothing_in_flight()
        self._nothing_leaked()

    # --- how -------------------------------------------------------------------------------------

    def _start(
        self, user: str, at: int, wish: Wish, crash: int | None, fault: tuple[str, str] | None
    ) -> Answer | None:
        replica = self.replicas[at]
        request = Request("default", "StartSession", os.urandom(8), uuids.uuid7())
        start = Start(request, Key("default", "nest", user), wish)
        answer: Answer | None = self._call(
            replica, lambda: replica.wired.cases.starts.start(start), crash, fault
        )
        if answer is not None:
            self._check_start(answer, wish.min_continuity)
        return answer

    def _call(
        self,
        replica: Replica,
        call: Callable[[], Awaitable[Any]],
        crash: int | None,
        fault: tuple[str, str] | None,
    ) -> Any:
        """The call's answer; None where it was refused, or the replica died. Any: of any call."""
        replica.countdown = crash
        if fault is not None:
            replica.faults.append(fault)
        answer = self.stage.run(self._answer(replica, call))
        replica.faults.clear()
        return None if replica.dead else answer

    async def _answer(self, replica: Replica, call: Callable[[], Awaitable[Any]]) -> Any:
        answer = None
        try:
            async with asyncio.timeout(60):
                answer = await call()
        except errors.RoostError as error:
            assert error.reason != "INTERNAL", error
        if not replica.dead:
            await replica.settle()
            replica.countdown = None
        if replica.dead:
            answer = None
            await replica.bury()
        return answer

    def _check_start(self, answer: Answer, least: Continuity | None) -> None:
        """What the answer claims is so, and no less than was asked for; then a click."""
        container, decision = answer.record.container, answer.decision
        assert container is not None and container.container_id is not None
        machine = self.cloud.machines[container.container_id]
        assert decision.continuity is not None
        if machine.state is not ContainerState.STARTED:
            return
        before = self.clicks.get(container.container_id)
        if decision.continuity is Continuity.MEMORY:
            assert machine.memory == (before or 0), (decision, machine, before)
        if least is not None and before is not None:
            assert decision.continuity >= least, decision
        machine.memory += 1
        self.clicks[container.container_id] = machine.memory

    async def _sweep(self, replica: Replica) -> None:
        background = replica.wired.background
        await background.sweeper.shot("memory", timedelta(seconds=1), act=True)
        await background.discarder.shot()

    def _tick(self, span: timedelta) -> None:
        for table, columns in TIMES.items():
            moved = ", ".join(f"{column} = {column} - %(span)s" for column in columns)
            self.stage.sql.execute(f"UPDATE {table} SET {moved}", {"span": span})
        self.cloud.pass_time(span)

    def _machines(self, user: str) -> list[Any]:
        """The user's machines that are not gone. Any: Machine."""
        rows = self.stage.sql.execute(
            "SELECT container_id FROM containers JOIN sessions USING (session_id)"
            " WHERE user_id = %s AND container_id IS NOT NULL",
            [user],
        ).fetchall()
        found = [self.cloud.machines[row[0]] for row in rows]
        return [machine for machine in found if not _gone(machine)]

    def _live_containers(self) -> set[str]:
        rows = self.stage.sql.execute(
            "SELECT c.container_id FROM containers c JOIN sessions s"
            " ON s.session_id = c.session_id AND s.generation = c.generation"
            " WHERE s.state IN ('ACTIVE', 'PAUSED') AND c.destroy_time IS NULL"
            " AND c.container_id IS NOT NULL"
        )
        return {row[0] for row in rows.fetchall()}

    def _nothing_in_flight(self) -> None:
        rows = self.stage.sql.execute(
            "SELECT session_id, state, transition, decision_id, failure_count, due_at - now()"
            " FROM sessions WHERE transition IS NOT NULL"
        ).fetchall()
        assert not rows, rows

    def _nothing_leaked(self) -> None:
        """Every machine is the current one of a session that is live or in its grace; every ACTIVE
        session has a machine that runs.
        """
        wanted = {
            row[0]
            for row in self.stage.sql.execute(
                "SELECT c.container_id FROM containers c JOIN sessions s"
                " ON s.session_id = c.session_id AND s.generation = c.generation"
                " WHERE c.destroy_time IS NULL AND c.wanted"
            ).fetchall()
        }
        there = {name for name, machine in self.cloud.machines.items() if not _gone(machine)}
        assert there <= wanted, there - wanted
        active = self.stage.sql.execute(
            "SELECT c.container_id FROM containers c JOIN sessions s"
            " ON s.session_id = c.session_id AND s.generation = c.generation"
            " WHERE s.state = 'ACTIVE'"
        ).fetchall()
        for (container_id,) in active:
            assert self.cloud.machines[container_id].state is ContainerState.STARTED


def _gone(machine: Any) -> bool:
    """Whether the machine is destroyed. Any: Machine."""
    return bool(machine.state is ContainerState.DESTROYED)


@pytest.mark.timeout(60 + 10 * HISTORIES)
def test_any_history_keeps_the_rules(database_url: str) -> None:
    """Calls, crashes, faults and ticks in whatever order hypothesis finds."""
    with asyncio.Runner() as runner:
        stage = Stage(database_url, runner)
        runner.run(stage.open())
        try:
            run_state_machine_as_test(
                type("Played", (History,), {"stage": stage}),
                settings=hypothesis.settings(
                    max_examples=HISTORIES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    # A history takes a second: shrinking one takes minutes, and is for later.
                    phases=[hypothesis.Phase.generate],
                    suppress_health_check=list(hypothesis.HealthCheck),
                ),
            )
        finally:
            runner.run(stage.close())
