"""Any order of calls, crashes, faults and ticks keeps the rules: over a real PostgreSQL.

Two replicas share a database and a cloud in memory. A tick moves the times of every row and
machine back. After each step the invariants are checked. At the end the passes run until no
transition is in flight, and then no machine may be leaked and none lost without proof.

`ROOST_HISTORIES=n` runs n histories instead of a few.
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
from session_service.start.facts import Start
from session_service.stop.service import Named
from tests.property.memory_containers import Cloud
from tests.property.replica import MortalDatabase, Replica, config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_service.transition.decision_record import Answer

HISTORIES = int(os.environ.get("ROOST_HISTORIES", "12"))
STEPS = 25
USERS = ("wren", "kite")
USER = st.sampled_from(USERS)
REPLICA = st.sampled_from((0, 1))
#: The number of provider calls and commits that a replica has left; mostly unlimited.
CRASH = st.one_of(st.none(), st.none(), st.integers(0, 24))
FAULT = st.one_of(
    st.none(),
    st.none(),
    st.tuples(
        st.sampled_from(
            ("create", "get", "list", "wait_started", "read_boot_id", "resume", "suspend", "stop",
             "destroy", "cordon", "uncordon", "acquire_lease", "wait_paused")
        ),
        st.sampled_from(("before", "after")),
    ),
)  # fmt: skip
#: Events at the provider or in the application.
EVENTS = ("suspend", "stop", "wake", "crash", "drop", "destroy")
#: The timestamps of every table that a tick moves.
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
    """The event loop, the database and its connections, which all histories use."""

    def __init__(self, url: str, runner: asyncio.Runner) -> None:
        self.url = url
        self.run = runner.run
        # More patient than the product: without a fault of the history no call may fail.
        self.databases = [MortalDatabase(url, max_size=4, timeout=30, answer=30) for _ in range(2)]
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
    """One history. A subclass sets `stage`."""

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
        """The last count that a user saw, by machine."""

    # --- the steps -------------------------------------------------------------------------------

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
        """A user starts the session, and clicks once if it runs."""
        self._start(user, at, Wish(mode, None, least), crash, fault)

    @rule(user=USER, at=REPLICA)
    def visit(self, user: str, at: int) -> None:
        """A start without a fault or crash must succeed."""
        answer = self._start(user, at, Wish(Mode.CONTINUE), None, None)
        assert answer is not None, "it failed without a fault"

    @rule(user=USER, at=REPLICA, what=st.sampled_from(EVENTS))
    def visit_after(self, user: str, at: int, what: str) -> None:
        """The same after an event at the provider."""
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
            "suspend": lambda: cases.stops.pause(named, PauseDepth.SUSPENDED),
            "stop": lambda: cases.stops.pause(named, PauseDepth.STOPPED),
            "end": lambda: cases.stops.end(named, now=False),
            "end now": lambda: cases.stops.end(named, now=True),
            "undelete": lambda: cases.stops.undelete(named),
            "touch": lambda: cases.lookups.touch("default", session_id, "typing"),
            "hold": lambda: cases.holds.put("default", session_id, "b", timedelta(minutes=40)),
        }
        self._call(replica, calls[what], crash, fault)

    @rule(at=REPLICA, crash=CRASH, fault=FAULT)
    def keep(self, at: int, crash: int | None, fault: tuple[str, str] | None) -> None:
        """A due pass."""
        due = self.replicas[at].wired.background.due_pass
        self._call(self.replicas[at], due.settle, crash, fault)

    @rule(at=REPLICA, crash=CRASH, fault=FAULT)
    def sweep(self, at: int, crash: int | None, fault: tuple[str, str] | None) -> None:
        """An inventory pass and a discard pass."""
        self._call(self.replicas[at], lambda: self._sweep(self.replicas[at]), crash, fault)

    @rule(minutes=st.sampled_from((0.1, 1, 6, 31, 31, 250)))
    def tick(self, minutes: float) -> None:
        """Let time pass."""
        self._tick(timedelta(minutes=minutes))

    @rule(user=USER, what=st.sampled_from(EVENTS))
    def provider(self, user: str, what: str) -> None:
        """An event at the provider or in the application."""
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

    # --- invariants ------------------------------------------------------------------------------

    @invariant()
    def no_two_machines_of_one_generation(self) -> None:
        """A repeated create makes no second machine."""
        names = [m.name for m in self.cloud.machines.values() if not _gone(m)]
        assert len(names) == len(set(names)), names

    @invariant()
    def no_current_container_is_destroyed(self) -> None:
        """No call of Roost destroyed the current container of a live session."""
        live = self._live_containers()
        destroyed = {m.address.container_id for m in self.cloud.destroyed}
        assert not live & destroyed, live & destroyed

    @invariant()
    def every_recorded_loss_is_real(self) -> None:
        """A container that its row calls destroyed is destroyed at the provider."""
        rows = self.stage.sql.execute(
            "SELECT container_id FROM containers"
            " WHERE destroy_time IS NOT NULL AND container_id IS NOT NULL"
        ).fetchall()
        for (container_id,) in rows:
            assert _gone(self.cloud.machines[container_id]), container_id

    def teardown(self) -> None:
        """Without faults every transition completes by passes alone, and nothing is leaked."""
        for replica in self.replicas:
            self.stage.run(replica.bury())
        for _ in range(12):
            self._tick(timedelta(minutes=6))
            for replica in self.replicas:
                self.stage.run(replica.wired.background.due_pass.settle())
                self.stage.run(self._sweep(replica))
        self._nothing_in_flight()
        self._nothing_leaked()

    # --- helpers ---------------------------------------------------------------------------------

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
        """The call's answer; None if it failed or the replica died. Any: of any call."""
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
        """Check that the answer's claims are true and at least what was asked for; then click."""
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
        await background.inventory_pass.shot("memory", timedelta(seconds=1), act=True)
        await background.discarder.shot()

    def _tick(self, span: timedelta) -> None:
        for table, columns in TIMES.items():
            moved = ", ".join(f"{column} = {column} - %(span)s" for column in columns)
            self.stage.sql.execute(f"UPDATE {table} SET {moved}", {"span": span})
        self.cloud.pass_time(span)

    def _machines(self, user: str) -> list[Any]:
        """The user's machines that are not destroyed. Any: Machine."""
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
        """Every machine is the current one of a session that is live or in its grace period; every
        ACTIVE session has a running machine.
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
    """Calls, crashes, faults and ticks in any order that hypothesis finds."""
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
                    # A history takes a second, so that shrinking one would take minutes.
                    phases=[hypothesis.Phase.generate],
                    suppress_health_check=list(hypothesis.HealthCheck),
                ),
            )
        finally:
            runner.run(stage.close())
