"""What a caller is told whose tenant has as many live sessions as it may."""

from __future__ import annotations

from session_service import errors

#: Room comes when somebody ends a session: there is no use in asking every second.
ASK_AGAIN_SECONDS = 30.0


def exceeded(most: int) -> errors.QuotaExceeded:
    """The refusal, which says what makes room and what does not."""
    return errors.QuotaExceeded(
        f"the tenant has the {most} live sessions that it may have. Paused ones count, since their "
        "containers are kept: end one that is no longer needed, with EndSession",
        {"limit": str(most)},
        ASK_AGAIN_SECONDS,
    )
