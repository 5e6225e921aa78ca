"""What was observed of a session's container: how the provider shows it, and its boot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from session_service.domain.session import ContainerState

if TYPE_CHECKING:
    from datetime import datetime


class Presence(StrEnum):
    """What the provider says of a container."""

    PRESENT = "PRESENT"
    ABSENT = "ABSENT"
    """Proved lost: destroyed, or twice not found apart by the lag window and in no listing."""
    UNKNOWN = "UNKNOWN"
    """An error, a time-out, an odd state: changes nothing."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot as a look showed it: the guest's boot id, and the start event known before that."""

    boot_id: str
    boot_time: datetime | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was observed of a session's container."""

    presence: Presence
    state: ContainerState = ContainerState.UNKNOWN
    memory_intact: bool | None = None
    """True: the same boot as last proved. False: another one. None: not known."""
    preview_answered: bool | None = None
    """Whether the preview answered; None where it was not asked."""
    first_boot: Boot | None = None
    """The boot of a container of which none was known before, so that nothing could be proved. Once
    an answer has said so, it is what later ones are compared with."""
