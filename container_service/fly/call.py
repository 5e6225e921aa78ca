"""One request to the Machines API, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Call:
    """One request, with what the transport needs to know about limits and retries."""

    action: str
    """Fly's rate limits count by action and subject; `get` has a limit of its own."""

    subject: str
    """The id of a machine or volume, or the name of an app for calls that concern neither."""

    method: str
    path: str
    """Relative to `/v1/`; begins with `apps/<app>`."""

    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    nonce: str = field(default="", repr=False)
    """The lease nonce; empty for none. Not in the repr, because it grants access."""

    repeatable: bool = False
    """Whether the call is idempotent, so that it may be sent again after a lost answer."""

    long: bool = False
    """Whether the answer takes long by nature: a wait or an exec."""

    streamed: bool = False
    """Whether the answer is read in pieces, and may take as long as the deadline allows."""

    seconds: float = 30.0
    """Seconds after which the call is given up, if the deadline is not sooner. For a streamed call
    they limit each wait for a piece of the answer.
    """

    @property
    def app(self) -> str:
        """The app that the call concerns."""
        return self.path.split("/", 2)[1]

    @property
    def changes(self) -> bool:
        """Whether the call is a change, so that a lost answer leaves the outcome unknown."""
        return self.method != "GET"
