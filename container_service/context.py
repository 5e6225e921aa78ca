"""What a call's gRPC context says to the service."""

from __future__ import annotations

from typing import Any, cast

import grpc.aio

from container_service.deadlines import Deadline

Context = grpc.aio.ServicerContext[Any, Any]

#: How long a call may take whose caller set no deadline, in seconds.
DEFAULT_SECONDS = 60.0
#: Kept back of the caller's deadline, so that our answer is there before it.
MARGIN_SECONDS = 0.25


def deadline_of(context: Context) -> Deadline:
    """The deadline to hand down: a little before the caller's."""
    # None without a deadline, whatever its stub says.
    remaining = cast(float | None, context.time_remaining())
    if remaining is None:
        return Deadline.after(DEFAULT_SECONDS)
    return Deadline.after(remaining - min(MARGIN_SECONDS, remaining / 10))
