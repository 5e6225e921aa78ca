"""Observations of a session's container: its state at the provider, and its boot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from session_service.domain.session import ContainerState

if TYPE_CHECKING:
    from datetime import datetime


class Presence(StrEnum):
    """Whether a container exists, as far as the provider's answers prove it."""

    PRESENT = "PRESENT"
    ABSENT = "ABSENT"
    """Proved lost: shown as destroyed; or not found twice, a lag window apart, nor listed."""
    UNKNOWN = "UNKNOWN"
    """An error, a timeout or an intermediate state, which changes nothing."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot: the guest's boot id, and the provider's newest start event, read before the id."""

    boot_id: str
    boot_time: datetime | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """The result of a probe of a session's container."""

    presence: Presence
    state: ContainerState = ContainerState.UNKNOWN
    memory_intact: bool | None = None
    """True: the same boot as last proved. False: another boot. None: unknown."""
    preview_answered: bool | None = None
    """Whether the preview answered; None if it was not asked."""
    first_boot: Boot | None = None
    """The boot of a container whose boot was not known before, so that there was nothing to compare
    it with. Once an answer has recorded it, later boots are compared with it."""
