"""What the demo does under one policy: the calls, what must come, and the table's lines."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from local.demo_calls import StoryOver, answered, refusal, since
from local.demo_words import continuity_of, outcome_of, reply_of, rest_of, short, state_of
from local.fly_machine import machine_state
from local.policy_table import Line
from local.stack_parts import TOKEN
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.client import SessionClient
    from local.preview import Previews
    from local.report import Report
    from local.stack import Stack
    from roost.container.v1.container_service_pb2 import ContainerSpec

NO_STOP = "(no stop)"
CLICKS = 2


@dataclass(frozen=True)
class Answer:
    """What the user chose, and the token that says so."""

    choice: str = ""
    token: str = ""


NOT_ASKED = Answer()


class PolicySteps:
    """One user in one project, whose policy is this one; the report takes each answer."""

    def __init__(
        self, policy: str, stack: Stack, client: SessionClient, previews: Previews, report: Report
    ) -> None:
        self.lines: list[Line] = []
        """What came of each start but the first."""
        self._policy = policy
        self._stack = stack
        self._client = client
        self._previews = previews
        self._report = report
        self._key = pb.SessionKey(project_id=policy.lower(), user_id="you")
        self._in_file = False
        self._count = 0
        self._stop_meant = NO_STOP

    async def set_policy(self, spec: ContainerSpec) -> None:
        """Set the project's policy, and what its containers are made of."""
        self._in_file = "COUNTER_FILE" in spec.env
        wanted = pb.Policy.Persistence.Value(f"PERSISTENCE_{self._policy}")
        policy, name = pb.Policy(persistence=wanted, spec=spec), self._key.project_id
        call = "UpdateProjectPolicy"
        project, spent = await answered(
            self._report, call, lambda: self._client.set_policy(name, policy)
        )
        persistence = pb.Policy.Persistence.Name(project.effective_policy.persistence)
        came = persistence.removeprefix("PERSISTENCE_")
        told = {"persistence": (self._policy, came)}
        self._report.row(call, f"persistence {came}, project {name}", spent, told)

    async def begin(self) -> pb.Session:
        """The first start at the key, and two clicks."""
        reply, _ = await self._start("CREATED", "NONE", 0, {}, NOT_ASKED)
        await self.click_twice(reply.session)
        return reply.session

    async def start(
        self,
        outcome: str,
        continuity: str,
        *,
        counter: int,
        same_as: pb.Session | None = None,
        answer: Answer = NOT_ASKED,
    ) -> pb.Session:
        """A start where there is, or was, a session; a line of the table."""
        ids = {"session": short(same_as)} if same_as else {}
        reply, came = await self._start(outcome, continuity, counter, ids, answer)
        asked = f"asked, {answer.choice}: " if answer.choice else ""
        self.lines.append(Line(self._policy, self._stop_meant, asked + reply_of(reply), came))
        self._stop_meant = NO_STOP
        return reply.session

    async def click_twice(self, session: pb.Session) -> None:
        """Two clicks of a counter that shows 0."""
        _, spent = await self._previews.get(session, "/click")
        came, more = await self._previews.get(session, "/click")
        self._count = CLICKS
        told = {"counter": (str(CLICKS), came)}
        self._report.row("GET /click of the preview, twice", f"counter {came}", spent + more, told)

    async def stop(self, session: pb.Session, expected: str) -> None:
        """A stop, and what it left."""
        session_id, call = session.session_id, "StopSession"
        stopped, spent = await answered(self._report, call, lambda: self._client.stop(session_id))
        self._stop_meant = rest_of(stopped)
        told = {"what is left": (expected, self._stop_meant)}
        self._report.row(call, self._stop_meant, spent, told)

    async def machine_is(
        self, session: pb.Session, expected: str, *, other_than: pb.Session | None = None
    ) -> None:
        """What the Fly emulator says of the machine that the session has, or had."""
        machine_id, app = session.container.container_id, self._stack.settings.app
        began = monotonic()
        state = await machine_state(self._stack.fly_url, TOKEN, app, machine_id)
        told: dict[str, tuple[object, object]] = {"machine": (expected, state)}
        if other_than:
            told["another machine"] = (True, machine_id != other_than.container.container_id)
        answer = f"machine {machine_id}: {state}"
        self._report.row("GET of the machine at the Fly emulator", answer, since(began), told)

    async def asked(self, expected: Mapping[str, str]) -> Mapping[str, str]:
        """A start that is answered with a choice: the tokens, by what choosing them means.

        `expected` has what each choice would bring back, best first. Raises StoryOver where one is
        not offered.
        """
        refused, spent = await refusal(lambda: self._client.start(self._key))
        candidates = refused.candidates if refused else ()
        offered = {_choice(each): _brings_back(each) for each in candidates}
        reason = refused.reason if refused else "no error"
        told: dict[str, tuple[object, object]] = {
            "reason": ("CHOICE_REQUIRED", reason),
            "candidates": (_listed(expected), _listed(offered)),
        }
        self._report.row("StartSession", f"{reason}: {_listed(offered)}", spent, told)
        if not expected.keys() <= offered.keys():
            raise StoryOver
        return {_choice(each): each.choice_token for each in candidates}

    async def refused_again(self, answer: Answer, expected: str) -> None:
        """A start with a token that was used."""
        refused, spent = await refusal(
            lambda: self._client.start(self._key, choice_token=answer.token)
        )
        came = refused.reason if refused else "no error"
        told = {"reason": (expected, came)}
        self._report.row("StartSession, the same token again", f"refused: {came}", spent, told)

    async def _start(
        self, outcome: str, continuity: str, counter: int, ids: Mapping[str, str], answer: Answer
    ) -> tuple[rpc_pb.StartSessionResponse, str]:
        call = f"StartSession, {answer.choice}'s token" if answer.choice else "StartSession"
        reply, spent = await answered(
            self._report, call, lambda: self._client.start(self._key, choice_token=answer.token)
        )
        session_id = short(reply.session)
        told: dict[str, tuple[object, object]] = {
            "outcome": (outcome, outcome_of(reply)),
            "continuity": (continuity, continuity_of(reply)),
            "continuity proved": (True, reply.continuity_verified),
            "state": ("ACTIVE", state_of(reply.session)),
            **{name: (expected, session_id) for name, expected in ids.items()},
        }
        self._report.row(call, f"{reply_of(reply)}; session {session_id}", spent, told)
        return reply, await self._read(reply, counter)

    async def _read(self, reply: rpc_pb.StartSessionResponse, expected: int) -> str:
        """What the counter shows: as told, and as the reply has it."""
        self._count = promised_count(reply.continuity, self._count, in_file=self._in_file)
        came, spent = await self._previews.get(reply.session, "/")
        told: dict[str, tuple[object, object]] = {
            "counter": (str(expected), came),
            "counter, going by the reply": (str(self._count), came),
        }
        self._report.row("GET / of the preview", f"counter {came}", spent, told)
        return came


def promised_count(continuity: pb.Continuity.ValueType, count: int, *, in_file: bool) -> int:
    """What a counter must show that was at `count`, if that continuity is true.

    `in_file`: whether it keeps its count in a file, and not only in memory.
    """
    kept = continuity in (pb.CONTINUITY_MEMORY, pb.CONTINUITY_CHECKPOINT)
    return count if kept or (in_file and continuity == pb.CONTINUITY_FILESYSTEM) else 0


def _listed(offered: Mapping[str, str]) -> str:
    return ", ".join(f"{choice} ({continuity})" for choice, continuity in offered.items())


def _choice(candidate: rpc_pb.Candidate) -> str:
    return rpc_pb.Choice.Name(candidate.choice).removeprefix("CHOICE_")


def _brings_back(candidate: rpc_pb.Candidate) -> str:
    return pb.Continuity.Name(candidate.expected_continuity).removeprefix("CONTINUITY_")
