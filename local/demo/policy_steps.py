"""The steps of a policy scenario: each call, its expected answer, and the table's lines."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import httpx

from local.demo.calls import ScenarioAborted, answered, failure, since
from local.demo.reply_text import (
    continuity_of,
    outcome_of,
    paused_state_of,
    reply_of,
    short,
    state_of,
)
from local.demo.report import Line
from local.stack.programs import TOKEN
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.demo.preview import Previews
    from local.demo.report import Report
    from local.demo.session_client import SessionClient
    from local.stack.stack import Stack
    from roost.container.v1.container_service_pb2 import ContainerSpec

NO_STOP = "(no stop)"
CLICKS = 2


@dataclass(frozen=True)
class Choice:
    """The candidate that the user chose, and its token."""

    choice: str = ""
    token: str = ""


NO_CHOICE = Choice()


class PolicySteps:
    """The steps of one user in one project with this policy; every answer is reported."""

    def __init__(
        self, policy: str, stack: Stack, client: SessionClient, previews: Previews, report: Report
    ) -> None:
        self.lines: list[Line] = []
        """One line of the table per start, except for the first."""
        self._policy = policy
        self._stack = stack
        self._client = client
        self._previews = previews
        self._report = report
        self._key = pb.SessionKey(project_id=policy.lower(), user_id="you")
        self._in_file = False
        self._count = 0
        self._stopped = NO_STOP

    async def set_policy(self, spec: ContainerSpec) -> None:
        """Set the project's policy and the spec of its containers."""
        self._in_file = "COUNTER_FILE" in spec.env
        wanted = pb.Policy.Persistence.Value(f"PERSISTENCE_{self._policy}")
        policy, name = pb.Policy(persistence=wanted, spec=spec), self._key.project_id
        call = "UpdateProjectPolicy"
        project, spent = await answered(
            self._report, call, lambda: self._client.set_policy(name, policy)
        )
        persistence = pb.Policy.Persistence.Name(project.effective_policy.persistence)
        came = persistence.removeprefix("PERSISTENCE_")
        checks = {"persistence": (self._policy, came)}
        self._report.row(call, f"persistence {came}, project {name}", spent, checks)

    async def begin(self) -> pb.Session:
        """Start the first session of the key and click twice."""
        reply, _ = await self._start("CREATED", "NONE", 0, {}, NO_CHOICE)
        await self.click_twice(reply.session)
        return reply.session

    async def start(
        self,
        outcome: str,
        continuity: str,
        *,
        counter: int,
        same_as: pb.Session | None = None,
        choice: Choice = NO_CHOICE,
    ) -> pb.Session:
        """Start again after a first session; adds a line to the table."""
        ids = {"session": short(same_as)} if same_as else {}
        reply, came = await self._start(outcome, continuity, counter, ids, choice)
        asked = f"asked, {choice.choice}: " if choice.choice else ""
        self.lines.append(Line(self._policy, self._stopped, asked + reply_of(reply), came))
        self._stopped = NO_STOP
        return reply.session

    async def click_twice(self, session: pb.Session) -> None:
        """Click twice on a counter that is 0."""
        _, spent = await self._previews.get(session, "/click")
        came, more = await self._previews.get(session, "/click")
        self._count = CLICKS
        checks = {"counter": (str(CLICKS), came)}
        self._report.row(
            "GET /click of the preview, twice", f"counter {came}", spent + more, checks
        )

    async def stop(self, session: pb.Session, expected: str) -> None:
        """Stop the session and check what the stop preserved."""
        session_id, call = session.session_id, "StopSession"
        stopped, spent = await answered(self._report, call, lambda: self._client.stop(session_id))
        self._stopped = paused_state_of(stopped)
        checks = {"stopped": (expected, self._stopped)}
        self._report.row(call, self._stopped, spent, checks)

    async def machine_is(
        self, session: pb.Session, expected: str, *, other_than: pb.Session | None = None
    ) -> None:
        """Check the state of the session's machine at the Fly emulator."""
        machine_id, app = session.container.container_id, self._stack.settings.app
        began = monotonic()
        state = await machine_state(self._stack.fly_url, TOKEN, app, machine_id)
        checks: dict[str, tuple[object, object]] = {"machine": (expected, state)}
        if other_than:
            checks["another machine"] = (True, machine_id != other_than.container.container_id)
        answer = f"machine {machine_id}: {state}"
        self._report.row("GET the machine from the Fly emulator", answer, since(began), checks)

    async def expect_choice(self, expected: Mapping[str, str]) -> Mapping[str, str]:
        """Start where the policy asks the user; return the token of each choice.

        `expected` maps each choice, best first, to the continuity that it would preserve. Raises
        ScenarioAborted when one is not offered.
        """
        error, spent = await failure(lambda: self._client.start(self._key))
        candidates = error.candidates if error else ()
        offered = {_choice(each): _continuity_of_candidate(each) for each in candidates}
        reason = error.reason if error else "no error"
        checks: dict[str, tuple[object, object]] = {
            "reason": ("CHOICE_REQUIRED", reason),
            "candidates": (_listed(expected), _listed(offered)),
        }
        self._report.row("StartSession", f"{reason}: {_listed(offered)}", spent, checks)
        if not expected.keys() <= offered.keys():
            raise ScenarioAborted
        return {_choice(each): each.choice_token for each in candidates}

    async def expect_used_token(self, choice: Choice, expected: str) -> None:
        """Start with a token that was used already."""
        error, spent = await failure(
            lambda: self._client.start(self._key, choice_token=choice.token)
        )
        came = error.reason if error else "no error"
        checks = {"reason": (expected, came)}
        self._report.row("StartSession, the same token again", f"error: {came}", spent, checks)

    async def _start(
        self, outcome: str, continuity: str, counter: int, ids: Mapping[str, str], choice: Choice
    ) -> tuple[rpc_pb.StartSessionResponse, str]:
        call = f"StartSession, token of {choice.choice}" if choice.choice else "StartSession"
        reply, spent = await answered(
            self._report, call, lambda: self._client.start(self._key, choice_token=choice.token)
        )
        session_id = short(reply.session)
        checks: dict[str, tuple[object, object]] = {
            "outcome": (outcome, outcome_of(reply)),
            "continuity": (continuity, continuity_of(reply)),
            "continuity verified": (True, reply.continuity_verified),
            "state": ("ACTIVE", state_of(reply.session)),
            **{name: (expected, session_id) for name, expected in ids.items()},
        }
        self._report.row(call, f"{reply_of(reply)}; session {session_id}", spent, checks)
        return reply, await self._read(reply, counter)

    async def _read(self, reply: rpc_pb.StartSessionResponse, expected: int) -> str:
        """Read the counter; check it against `expected` and against the reply's continuity."""
        self._count = promised_count(reply.continuity, self._count, in_file=self._in_file)
        came, spent = await self._previews.get(reply.session, "/")
        checks: dict[str, tuple[object, object]] = {
            "counter": (str(expected), came),
            "counter according to the reply": (str(self._count), came),
        }
        self._report.row("GET / of the preview", f"counter {came}", spent, checks)
        return came


async def machine_state(api_url: str, token: str, app: str, machine_id: str) -> str:
    """The machine's state at Fly, such as "started"; on an error, the error as text."""
    headers = {"authorization": f"Bearer {token}"}
    # `trust_env=False`: a developer's HTTP_PROXY must not apply to loopback.
    async with httpx.AsyncClient(base_url=api_url, headers=headers, trust_env=False) as client:
        try:
            answer = await client.get(f"/v1/apps/{app}/machines/{machine_id}")
        except httpx.HTTPError as error:
            return repr(error)
    return str(answer.json()["state"]) if answer.is_success else f"HTTP {answer.status_code}"


def promised_count(continuity: pb.Continuity.ValueType, count: int, *, in_file: bool) -> int:
    """The count that a counter at `count` must have after a start with this continuity.

    `in_file`: whether the counter stores its count in a file and not only in memory.
    """
    kept = continuity in (pb.CONTINUITY_MEMORY, pb.CONTINUITY_CHECKPOINT)
    return count if kept or (in_file and continuity == pb.CONTINUITY_FILESYSTEM) else 0


def _listed(offered: Mapping[str, str]) -> str:
    return ", ".join(f"{choice} ({continuity})" for choice, continuity in offered.items())


def _choice(candidate: rpc_pb.Candidate) -> str:
    return rpc_pb.Choice.Name(candidate.choice).removeprefix("CHOICE_")


def _continuity_of_candidate(candidate: rpc_pb.Candidate) -> str:
    return pb.Continuity.Name(candidate.expected_continuity).removeprefix("CONTINUITY_")
