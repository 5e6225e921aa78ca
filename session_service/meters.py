"""Who hears of what a replica does, as it does it: nobody, where no metrics are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_service.lifecycle.joining import Answer
    from session_service.lifecycle.keeper import Kept
    from session_service.lifecycle.sweeper import Swept
    from session_service.vault.clearing import Cleared


class Meter:
    """Hears, and counts nothing. Each call is cheap and never fails."""

    def started(self, answer: Answer, seconds: float) -> None:
        """A start was answered, so long after it came."""

    def refused(self, method: str, reason: str) -> None:
        """A call of the method, by its last name, was answered with an error."""

    def kept(self, kept: Kept) -> None:
        """The keeper made a pass."""

    def cleared(self, cleared: Cleared) -> None:
        """Volumes that nobody needs were looked for."""

    def swept(self, swept: list[Swept]) -> None:
        """The sweeper passed over apps."""
