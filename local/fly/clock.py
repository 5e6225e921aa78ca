"""The current time in the formats of the API."""

import time
from datetime import UTC, datetime


def unix_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def rfc3339(unix_seconds: float) -> str:
    """Format unix seconds as `2023-11-08T01:52:30Z`."""
    moment = datetime.fromtimestamp(unix_seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_now() -> str:
    """The current time as `2023-11-08T01:52:30Z`."""
    return rfc3339(time.time())
