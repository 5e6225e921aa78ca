"""What the provider really did, from the emulator's own log: machines of one key over time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.chaos.model import Violation
from tests.chaos.model_memory import Boots

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from local.fly.log import Action
    from tests.chaos.history import Call

#: From these on a machine's process runs, or may run.
BEGINS = frozenset({"started", "suspend_failed"})
#: And from these on it does not.
ENDS = frozenset({"suspended", "stopped", "exited", "destroyed", "vanished", "failed"})


@dataclass(frozen=True)
class Run:
    """A time in which a machine ran. Unix seconds; `ended` is infinite where it runs still."""

    key: str
    session: str
    generation: str
    machine: str
    began: float
    ended: float
    born: float = 0.0
    """When the session's first machine was made."""


@dataclass(frozen=True)
class SessionRow:
    """What the database says at the end of a session."""

    session: str
    key: str
    state: str
    end_reason: str


class Ledger:
    """The emulator's committed actions, read once."""

    def __init__(self, actions: list[Action], deaths: list[float]) -> None:
        """`deaths` are the times at which the emulator was killed, and every guest with it."""
        self._actions = [action for action in actions if action.labels.get("roost_session")]
        self._deaths = deaths

    def boots(self) -> Boots:
        """When machines booted anew, but for the first time of each session."""
        seen: set[str] = set()
        booted: set[str] = set()
        boots = Boots(again={"": list(self._deaths)})
        for action in self._actions:
            cold = action.action == "started" and action.detail.get("boot") == "cold"
            if action.action == "vanished" or (cold and action.machine in booted):
                lost = boots.again.setdefault(action.labels["roost_session"], [])
                lost.append(action.time_ms / 1000)
            if cold:
                booted.add(action.machine)
            if action.action == "started" and action.detail.get("boot") == "cold":
                session = action.labels["roost_session"]
                if session in seen:
                    boots.cold.setdefault(session, []).append(action.time_ms / 1000)
                seen.add(session)
        return boots

    def twins(self, keys: Mapping[str, str]) -> Iterator[Violation]:
        """A second machine made for a session and generation while the first was there.

        After the provider lost one before anybody knew its id, making it anew is no duplicate.
        """
        there: dict[tuple[str, str], set[str]] = defaultdict(set)
        for action in self._actions:
            session = action.labels["roost_session"]
            generation = action.labels.get("roost_generation", "")
            machines = there[session, generation]
            if action.action == "create":
                if machines:
                    text = f"{session}, generation {generation}: {action.machine} beside {machines}"
                    yield Violation(keys.get(session, "?"), "CREATE_NEVER_DUPLICATES", text)
                machines.add(action.machine)
            elif action.action in ("destroy", "destroyed", "vanished"):
                machines.discard(action.machine)

    def runs(self, keys: Mapping[str, str]) -> list[Run]:
        """Each machine's times of running."""
        since: dict[str, float] = {}
        runs: list[Run] = []
        for action in self._actions:
            at = action.time_ms / 1000
            if action.action in BEGINS:
                since.setdefault(action.machine, at)
            elif action.action in ENDS and action.machine in since:
                runs.append(_run(action, since.pop(action.machine), at, keys))
        last = {action.machine: action for action in self._actions}
        forever = float("inf")
        runs += [_run(last[machine], began, forever, keys) for machine, began in since.items()]
        born: dict[str, float] = {}
        for action in self._actions:
            born.setdefault(action.labels["roost_session"], action.time_ms / 1000)
        return [self._cut(replace(run, born=born[run.session])) for run in runs]

    def _cut(self, run: Run) -> Run:
        """The emulator's death ends what ran, and leaves no line of it."""
        deaths = [death for death in self._deaths if run.began < death < run.ended]
        return replace(run, ended=min(deaths)) if deaths else run

    def overlaps(
        self,
        keys: Mapping[str, str],
        histories: Mapping[str, list[Call]],
        rows: Mapping[str, SessionRow],
    ) -> Iterator[Violation]:
        """Two machines of one key that ran at once, neither of them on its way out.

        A FRESH start leaves the old machine alone until the new one stands, and an end gives the
        key free with its intent: a machine may run beside the next session's from the time at which
        its end, or a FRESH start of its key, was asked for. So may that of a session that never
        stood, whose end nobody asked for.
        """
        by_key: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs(keys):
            by_key[run.key].append(run)
        for key, runs in by_key.items():
            runs.sort(key=lambda run: run.began)
            for number, one in enumerate(runs):
                for two in runs[number + 1 :]:
                    if two.began >= one.ended or one.machine == two.machine:
                        continue
                    if one.session == two.session:
                        text = f"two machines of {one.session} ran at once: {one} and {two}"
                        yield Violation(key, "TWO_MACHINES", text)
                    elif not any(
                        _going(run, two.began, histories.get(key, []), rows) for run in (one, two)
                    ):
                        text = f"two machines ran at once, neither on its way out: {one} and {two}"
                        yield Violation(key, "TWO_MACHINES", text)


def _going(run: Run, at: float, calls: list[Call], rows: Mapping[str, SessionRow]) -> bool:
    """Whether the machine's session was on its way out at that time."""
    row = rows.get(run.session)
    if row is not None and row.end_reason == "CREATE_FAILED":
        return True
    for call in calls:
        ends = call.method == "EndSession" and call.asked == run.session
        replaces = call.method == "StartSession" and call.mode == "FRESH"
        if replaces:
            # Only of a session that was there, or came to be, while it was asked for.
            ends = call.named != run.session and run.born <= call.settled
        if ends and (call.ok or call.unclear) and call.since <= at:
            back = any(
                other.method == "UndeleteSession"
                and other.ok
                and other.asked == run.session
                and call.settled < other.since
                and other.ended < at
                for other in calls
            )
            if not back:
                return True
    return False


def _run(action: Action, began: float, ended: float, keys: Mapping[str, str]) -> Run:
    session = action.labels["roost_session"]
    generation = action.labels.get("roost_generation", "")
    return Run(keys.get(session, "?"), session, generation, action.machine, began, ended)
