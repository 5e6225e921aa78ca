"""The metrics sink: what a replica reports its work to. This one does nothing; metrics are off."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_service.checkpoints.retention import DeletedVolumes
    from session_service.reconcile.due import DueCounts
    from session_service.reconcile.inventory import InventoryCounts
    from session_service.storage.session.commit import Commit, Committed
    from session_service.transition.decision_record import Answer


class MetricsSink:
    """Takes reports and ignores them. Every method is cheap and raises nothing."""

    def started(self, answer: Answer, seconds: float) -> None:
        """A start was answered, `seconds` after the call came in."""

    def committed(self, wanted: Commit, done: Committed) -> None:
        """The intent or the outcome of a transition, or an answer, was committed."""

    def refused(self, method: str, reason: str) -> None:
        """A call was answered with an error. `method` is the RPC's name without its package and
        service, such as StartSession; `reason` is that of the error.
        """

    def reconciled(self, counts: DueCounts) -> None:
        """The reconciler made a pass over the sessions with a due action."""

    def swept(self, swept: list[InventoryCounts]) -> None:
        """The inventory pass compared the listings of some apps with the rows."""

    def volumes_deleted(self, volumes: DeletedVolumes) -> None:
        """A pass deleted volumes that no session needs."""

    def late(self, name: str) -> None:
        """A pass of this background loop still runs after another of its intervals."""
