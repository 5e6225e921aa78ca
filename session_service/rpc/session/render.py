"""Sessions, decisions and the replies of starts as messages."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.domain import next_action as domain_next_action
from session_service.domain import plans
from session_service.domain.decision import load_attempts
from session_service.domain.ladder import BEST_OF, rungs_for
from session_service.domain.next_action import Action
from session_service.domain.session import (
    ConditionType,
    Continuity,
    condition,
    expected_continuity,
    fingerprint_changed,
    load_conditions,
)
from session_service.domain.spec import Carrier
from session_service.domain.states import State
from session_service.errors import ChoiceRequired
from session_service.rpc.fields import timestamp
from session_service.rpc.policy import render
from session_service.sessions.lookup import etag_of

if TYPE_CHECKING:
    from session_service.domain.decision import Decision
    from session_service.domain.next_action import Step, Timings
    from session_service.domain.session import (
        Attempt,
        Condition,
        Container,
        PauseDepth,
        Record,
        Session,
    )
    from session_service.ports import Previews
    from session_service.start.preview import Previewed
    from session_service.transition.decision_record import Answer

_STATES = {state: pb.Session.State.Value(f"STATE_{state.name}") for state in State}
_PAUSED_OR_ENDED = frozenset({State.PAUSED, State.ENDED})


def state(value: State) -> pb.Session.State.ValueType:
    """A session's state."""
    return _STATES[value]


def next_action(step: Step) -> pb.NextAction | None:
    """The next automatic action and its time; None if there is none."""
    if step.time is None:
        return None
    return pb.NextAction(action=_ACTIONS[step.action], time=timestamp(step.time))


_ACTIONS = {
    Action.NOTHING: pb.NextAction.ACTION_UNSPECIFIED,
    Action.WARN: pb.NextAction.ACTION_PAUSE,
    Action.PAUSE: pb.NextAction.ACTION_PAUSE,
    Action.DEEPEN: pb.NextAction.ACTION_DEEPEN,
    Action.EXPIRE: pb.NextAction.ACTION_END,
    Action.RECOVER: pb.NextAction.ACTION_RECOVER,
    Action.PURGE: pb.NextAction.ACTION_PURGE,
    Action.TAKE_OVER: pb.NextAction.ACTION_TAKE_OVER,
    Action.DISCARD: pb.NextAction.ACTION_DISCARD,
    Action.CHECKPOINT: pb.NextAction.ACTION_UNSPECIFIED,
    Action.FORGET: pb.NextAction.ACTION_FORGET,
}


class Renderer:
    """Renders sessions, which need the URL pattern of previews and the reconciler's timings."""

    def __init__(self, previews: Previews, timings: Timings) -> None:
        self._previews = previews
        self._timings = timings

    def session(self, record: Record, *extra: Condition) -> pb.Session:
        """A session. `extra` are conditions of this reply only; they follow the session's own."""
        row = record.session
        return pb.Session(
            session_id=str(row.session_id),
            key=pb.SessionKey(project_id=row.project_id, user_id=row.user_id, slot=row.slot),
            state=_STATES[row.state],
            generation=row.generation,
            container=self._container(row, record.container),
            pause_depth=_depth(row.pause_depth if row.state in _PAUSED_OR_ENDED else None),
            expected_continuity=_continuity(expected_continuity(row, record.container)),
            conditions=_conditions(record, extra),
            policy=render.policy(row.policy),
            fingerprint=row.fingerprint,
            create_time=timestamp(row.create_time),
            start_time=timestamp(row.start_time),
            last_active_time=timestamp(row.last_active_time),
            pause_time=timestamp(row.pause_time),
            end_time=timestamp(row.end_time),
            purge_time=timestamp(row.purge_time),
            next_action=next_action(domain_next_action.shown_step(record, self._timings)),
            etag=etag_of(row),
            start_count=row.start_count,
            end_reason=_end_reason(row),
            predecessor_session_id="" if row.predecessor_id is None else str(row.predecessor_id),
            event_sequence=row.event_sequence,
            activity=row.activity,
        )

    def _container(self, row: Session, container: Container | None) -> pb.SessionContainer | None:
        if container is None or container.container_id is None:
            return None
        return pb.SessionContainer(
            container_id=container.container_id,
            app=container.app,
            state=container_pb.ContainerState.Value(f"CONTAINER_STATE_{container.state}"),
            url=self._previews.url(container.app, container.container_id),
            region=container.region,
            verify_time=timestamp(row.verified_at),
        )

    def start(self, answer: Answer) -> rpc_pb.StartSessionResponse:
        """The reply to a start."""
        decision, now, extra = answer.decision, answer.record.now, []
        if decision.rule == "PREVIEW_ANSWERS":
            extra.append(condition(ConditionType.PROVIDER_UNREACHABLE, now))
        if answer.changed:
            extra.append(fingerprint_changed(answer.changed, now))
        return rpc_pb.StartSessionResponse(
            session=self.session(answer.record, *extra),
            outcome=_outcome(decision),
            continuity=_continuity(decision.continuity),
            continuity_verified=decision.continuity_verified,
            joined=decision.joined,
            decision_id=str(decision.decision_id),
            attempts=[attempt(item) for item in load_attempts(decision.attempts)],
        )

    def resume(self, answer: Answer) -> rpc_pb.ResumeSessionResponse:
        """The reply to a resume: that of a start, in the message of ResumeSession."""
        start = self.start(answer)
        return rpc_pb.ResumeSessionResponse(
            session=start.session,
            outcome=start.outcome,
            continuity=start.continuity,
            continuity_verified=start.continuity_verified,
            joined=start.joined,
            decision_id=start.decision_id,
            attempts=start.attempts,
        )


def preview(previewed: Previewed) -> rpc_pb.PreviewStartResponse:
    """The reply of PreviewStart."""
    record, plan = previewed.record, previewed.plan
    answer = rpc_pb.PreviewStartResponse(candidates=render.candidates(previewed.candidates))
    if previewed.error is not None or plan is None:
        answer.error_reason = "" if previewed.error is None else previewed.error.reason
        answer.explanation = "" if previewed.error is None else previewed.error.message
        return answer
    answer.rule, answer.explanation = plan.rule, plan.because
    match plan:
        case plans.Use():
            answer.outcome = pb.START_OUTCOME_REUSED
            answer.rungs.append(pb.RUNG_LIVE)
            answer.expected_continuity = _continuity(plan.continuity)
        case plans.TryRungs(recreate=Carrier.VOLUME):
            answer.outcome = pb.START_OUTCOME_CREATED
            answer.rungs.append(pb.RUNG_CREATE)
            answer.expected_continuity = pb.CONTINUITY_FILESYSTEM
        case plans.TryRungs() | plans.TakeOver() | plans.AwaitTransition() if record is not None:
            _preview_bring_up(answer, record, plan)
        case plans.Open() | plans.Replace():
            answer.outcome = pb.START_OUTCOME_CREATED
            answer.rungs.append(pb.RUNG_CREATE)
            answer.expected_continuity = pb.CONTINUITY_NONE
        case plans.Refuse():
            answer.error_reason = plan.refusal
        case plans.Ask():
            answer.error_reason = ChoiceRequired.reason
        case plans.Join():
            answer.joins = True
        case _:
            pass
    return answer


def _preview_bring_up(
    answer: rpc_pb.PreviewStartResponse, record: Record, plan: plans.Decision
) -> None:
    rungs = (
        plan.rungs
        if isinstance(plan, plans.TryRungs)
        else rungs_for(record.session, record.container)
    )
    answer.rungs.extend(pb.Rung.Value(f"RUNG_{rung}") for rung in rungs)
    answer.outcome = {
        "RESUME": pb.START_OUTCOME_RESUMED,
        "RESTART": pb.START_OUTCOME_RESTARTED,
        "RESTORE": pb.START_OUTCOME_RESTORED,
    }.get(rungs[0], pb.START_OUTCOME_CREATED)
    best = min(BEST_OF[rungs[0]], _expected(record))
    answer.expected_continuity = _continuity(best)


def _expected(record: Record) -> Continuity:
    return expected_continuity(record.session, record.container)


def decision(row: Decision) -> pb.Decision:
    """A decision's row as a message."""
    began, ended = row.create_time, row.finish_time
    seconds = 0.0 if began is None or ended is None else (ended - began).total_seconds()
    return pb.Decision(
        decision_id=str(row.decision_id),
        session_id="" if row.session_id is None else str(row.session_id),
        method=row.request.method,
        mode=pb.START_MODE_UNSPECIFIED
        if row.mode is None
        else pb.StartMode.Value(f"START_MODE_{row.mode}"),
        rule=row.rule,
        explanation=row.explanation,
        outcome=_outcome(row),
        continuity=_continuity(row.continuity),
        continuity_verified=row.continuity_verified,
        joined=row.joined,
        leader_decision_id="" if row.leader_decision_id is None else str(row.leader_decision_id),
        attempts=[attempt(item) for item in load_attempts(row.attempts)],
        error_reason=_error_reason(row),
        request_id="" if row.request.request_id is None else str(row.request.request_id),
        inputs_json=row.inputs,
        create_time=timestamp(row.create_time),
        finish_time=timestamp(row.finish_time),
        milliseconds=round(seconds * 1000),
    )


def attempt(item: Attempt) -> pb.Attempt:
    """An attempt at a rung as a message."""
    return pb.Attempt(
        rung=pb.Rung.Value(f"RUNG_{item.rung}"),
        result=pb.AttemptResult.Value(f"ATTEMPT_RESULT_{item.result}"),
        reason=item.reason,
        milliseconds=item.milliseconds,
        checkpoint_number=item.checkpoint_number,
    )


def _outcome(row: Decision) -> pb.StartOutcome.ValueType:
    if row.outcome is None:
        return pb.START_OUTCOME_UNSPECIFIED
    return pb.StartOutcome.Value(f"START_OUTCOME_{row.outcome}")


def _continuity(level: Continuity | None) -> pb.Continuity.ValueType:
    if level is None:
        return pb.CONTINUITY_UNSPECIFIED
    return pb.Continuity.Value(f"CONTINUITY_{level.name}")


def _depth(depth: PauseDepth | None) -> pb.PauseDepth.ValueType:
    if depth is None:
        return pb.PAUSE_DEPTH_UNSPECIFIED
    return pb.PauseDepth.Value(f"PAUSE_DEPTH_{depth}")


def _end_reason(row: Session) -> pb.EndReason.ValueType:
    if row.end_reason is None:
        return pb.END_REASON_UNSPECIFIED
    return pb.EndReason.Value(f"END_REASON_{row.end_reason}")


def _error_reason(row: Decision) -> str:
    return "" if row.error is None else str(load_error_reason(row.error))


@lru_cache(maxsize=256)
def load_error_reason(raw: str) -> str:
    """The reason in a recorded error's JSON text."""
    return str(json.loads(raw)["reason"])


def _conditions(record: Record, extra: tuple[Condition, ...]) -> list[pb.Condition]:
    return [
        pb.Condition(
            type=pb.ConditionType.Value(f"CONDITION_TYPE_{item.type}"),
            message=item.message,
            since_time=timestamp(item.since),
        )
        for item in (*load_conditions(record.session.conditions), *extra)
    ]
