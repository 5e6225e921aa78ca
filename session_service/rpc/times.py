"""Times and spans into messages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(time: datetime | None) -> Timestamp | None:
    """The time as a message; None stays unset."""
    if time is None:
        return None
    span = time - _EPOCH
    return Timestamp(seconds=span.days * 86_400 + span.seconds, nanos=span.microseconds * 1000)


def duration(span: timedelta) -> Duration:
    """The span as a message."""
    if span < timedelta(0):
        positive = duration(-span)
        return Duration(seconds=-positive.seconds, nanos=-positive.nanos)
    return Duration(seconds=span.days * 86_400 + span.seconds, nanos=span.microseconds * 1000)
