"""GetSessionStats: the request parsed, the figures rendered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.session.v1 import session_pb2
from roost.session.v1 import session_service_pb2 as pb
from session_service.domain.session import Outcome
from session_service.domain.stats import LONGEST, Span
from session_service.rpc.agent import fields as agent_fields
from session_service.rpc.fields import ID_LIMIT, Fields, duration, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

    from session_service.domain.session import Rung
    from session_service.domain.stats import Current, Day, Figures, Started, Tries


def parse(request: pb.GetSessionStatsRequest, tenant: str) -> Span:
    """The requested time span and project. Raises InvalidField."""
    fields = Fields()
    project_id = fields.text("project_id", request.project_id, ID_LIMIT)
    present = {name: request.HasField(name) for name in ("from_time", "to_time")}
    start = _time(fields, "from_time", request.from_time, present=present["from_time"])
    end = _time(fields, "to_time", request.to_time, present=present["to_time"])
    fields.done()
    if not start < end:
        fields.wrong("to_time", "must be after from_time")
    elif end - start > LONGEST:
        fields.wrong("to_time", f"must be at most {LONGEST.days} days after from_time")
    fields.done()
    return Span(tenant, project_id or None, start, end)


def _time(fields: Fields, name: str, value: Timestamp, *, present: bool) -> datetime:
    if not present:
        fields.wrong(name, "must be set")
    return agent_fields.time(fields, name, value)


def render(figures: Figures) -> pb.GetSessionStatsResponse:
    """The figures as a message."""
    whole, preferred = figures.whole, figures.preferred
    response = pb.GetSessionStatsResponse(
        start_count=whole.starts,
        reuse_rate=whole.reuse_rate,
        container_creations_per_hour=figures.creations_per_hour,
        recovery=[_rung(rung, tries) for rung, tries in figures.rungs.items()],
        chose_continue_count=preferred.asked_continue,
        chose_new_count=preferred.asked_new,
        join_count=figures.joins,
        replay_count=figures.replays,
        refusal_counts=figures.refusals,
        outcomes=_outcomes(whole.outcomes),
        container_creation_count=whole.creations,
        end_counts=figures.ends,
        auto_continue_count=preferred.auto_continue,
        auto_new_count=preferred.auto_new,
        days=[_day(day) for day in figures.days],
        current=_current(figures.current),
    )
    if figures.average_lifetime is not None:
        response.average_lifetime.CopyFrom(duration(figures.average_lifetime))
    return response


def _rung(rung: Rung, tries: Tries) -> pb.RungStats:
    return pb.RungStats(
        rung=session_pb2.Rung.Value(f"RUNG_{rung}"),
        attempt_count=tries.count,
        success_count=tries.succeeded,
        degraded_count=tries.degraded,
    )


def _outcomes(outcomes: Mapping[Outcome, Started]) -> Iterable[pb.OutcomeStats]:
    """The outcomes in the order of `Outcome`, from the best to the worst."""
    return [_outcome(outcome, outcomes[outcome]) for outcome in Outcome if outcome in outcomes]


def _outcome(outcome: Outcome, started: Started) -> pb.OutcomeStats:
    message = pb.OutcomeStats(
        outcome=session_pb2.StartOutcome.Value(f"START_OUTCOME_{outcome}"),
        start_count=started.count,
    )
    if started.latency is not None:
        message.latency_p50.CopyFrom(duration(started.latency.p50))
        message.latency_p95.CopyFrom(duration(started.latency.p95))
        message.latency_p99.CopyFrom(duration(started.latency.p99))
    return message


def _day(day: Day) -> pb.DayStats:
    return pb.DayStats(
        start_time=timestamp(day.start),
        start_count=day.starts,
        reuse_rate=day.reuse_rate,
        container_creation_count=day.creations,
        outcomes=_outcomes(day.outcomes),
    )


def _current(current: Current) -> pb.CurrentStats:
    message = pb.CurrentStats(
        overaged_count=current.overaged,
        due_count=current.due,
        orphan_count=current.orphans,
    )
    if current.oldest is not None:
        message.oldest_live_age.CopyFrom(duration(current.oldest))
    return message
