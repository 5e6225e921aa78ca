"""Rules about machines, checked against the emulator's log of committed actions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.chaos.model import Violation
from tests.chaos.model_memory import Boots
from tests.chaos.wakes import Wake, Wakes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from local.fly.logs import Action
    from tests.chaos.history import Call
    from tests.chaos.wakes import Deepening

#: Actions after which a machine's process runs.
BEGINS = frozenset({"started", "suspend_failed"})
#: Actions after which it does not.
ENDS = frozenset({"suspended", "stopped", "exited", "destroyed", "vanished", "failed"})

#: Actions after which a start that was requested before does not start the machine any more. Not
#: all others: a lease is released, and metadata is set, while the machine starts.
GIVES_UP = ENDS | {"stop", "suspend", "destroy"}


@dataclass(frozen=True)
class Run:
    """A period in which a machine ran. Unix seconds; `ended` is infinite if it still runs."""

    key: str
    session: str
    generation: str
    machine: str
    began: float
    ended: float
    created: float = 0.0
    """When the session's first machine was created."""


@dataclass(frozen=True)
class SessionRow:
    """A session's row at the end of the run."""

    session: str
    key: str
    state: str
    end_reason: str


class ProviderLog:
    """The emulator's committed actions, and what follows from them."""

    def __init__(self, actions: list[Action], deaths: list[float]) -> None:
        """`deaths` are the times at which the emulator, and with it every guest, was killed."""
        self._actions = [action for action in actions if action.labels.get("roost_session")]
        self._deaths = deaths

    def boots(self) -> Boots:
        """The times of cold boots, except for the first one of each session."""
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

    def wakes(self, deepenings: Iterable[Deepening]) -> Wakes:
        """The runs of machines that were started while their session's pause was being deepened.

        Only starts by a caller of the provider's API: a visit to the preview saves nothing.
        """
        times: dict[str, list[Deepening]] = defaultdict(list)
        for deepening in deepenings:
            times[deepening.session].append(deepening)
        requested: dict[str, Action] = {}
        woken: dict[tuple[str, float], bool] = {}
        for action in self._actions:
            if action.action == "start":
                requested[action.machine] = action
            elif action.action == "started" and action.machine in requested:
                start = requested.pop(action.machine)
                at, session = start.time_ms / 1000, start.labels["roost_session"]
                saving = any(each.began <= at <= each.ended for each in times[session])
                if start.source == "user" and saving:
                    cold = action.detail.get("boot") == "cold"
                    woken[action.machine, action.time_ms / 1000] = cold
            elif action.action in GIVES_UP:
                requested.pop(action.machine, None)
        wakes = Wakes()
        for run in self.runs({}):
            cold_boot = woken.get((run.machine, run.began))
            if cold_boot is not None:
                wake = Wake(run.began, run.ended, cold_boot)
                wakes.runs.setdefault(run.session, []).append(wake)
        return wakes

    def duplicate_creates(self, keys: Mapping[str, str]) -> Iterator[Violation]:
        """Violations: a second machine created for a generation while the first one exists.

        A new machine after the first one vanished is no duplicate.
        """
        existing: dict[tuple[str, str], set[str]] = defaultdict(set)
        for action in self._actions:
            session = action.labels["roost_session"]
            generation = action.labels.get("roost_generation", "")
            machines = existing[session, generation]
            if action.action == "create":
                if machines:
                    text = f"{session}, generation {generation}: {action.machine} beside {machines}"
                    yield Violation(keys.get(session, "?"), "CREATE_NEVER_DUPLICATES", text)
                machines.add(action.machine)
            elif action.action in ("destroy", "destroyed", "vanished"):
                machines.discard(action.machine)

    def runs(self, keys: Mapping[str, str]) -> list[Run]:
        """The periods in which each machine ran."""
        running_since: dict[str, float] = {}
        runs: list[Run] = []
        for action in self._actions:
            at, since = action.time_ms / 1000, running_since.get(action.machine)
            if action.action in BEGINS:
                if since is not None and any(since < death < at for death in self._deaths):
                    # That run ended when the emulator died: `_cut` sets the time.
                    runs.append(_run(action, since, at, keys))
                    del running_since[action.machine]
                running_since.setdefault(action.machine, at)
            elif action.action in ENDS and action.machine in running_since:
                runs.append(_run(action, running_since.pop(action.machine), at, keys))
        last = {action.machine: action for action in self._actions}
        forever = float("inf")
        runs += [
            _run(last[machine], began, forever, keys) for machine, began in running_since.items()
        ]
        created: dict[str, float] = {}
        for action in self._actions:
            created.setdefault(action.labels["roost_session"], action.time_ms / 1000)
        return [self._cut(replace(run, created=created[run.session])) for run in runs]

    def _cut(self, run: Run) -> Run:
        """The run, ended by the first death of the emulator in it, which has no log entry."""
        deaths = [death for death in self._deaths if run.began < death < run.ended]
        return replace(run, ended=min(deaths)) if deaths else run

    def overlaps(
        self,
        keys: Mapping[str, str],
        histories: Mapping[str, list[Call]],
        rows: Mapping[str, SessionRow],
    ) -> Iterator[Violation]:
        """Violations: two machines of one key that ran at once, neither of a session being ended.

        A FRESH start keeps the old machine until the new one runs, and an end releases the key when
        its intent is committed. So a machine may run beside that of the next session from the time
        of the request to end its session or of a FRESH start of its key. The same holds for a
        session whose creation failed, which no call ends.
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
                        _being_ended(run, two.began, histories.get(key, []), rows)
                        for run in (one, two)
                    ):
                        text = f"both ran at once, neither session being ended: {one} and {two}"
                        yield Violation(key, "TWO_MACHINES", text)


def _being_ended(run: Run, at: float, calls: list[Call], rows: Mapping[str, SessionRow]) -> bool:
    """Whether the machine's session was ended or being ended at that time."""
    row = rows.get(run.session)
    if row is not None and row.end_reason == "CREATE_FAILED":
        return True
    for call in calls:
        ends = call.method == "EndSession" and call.request_session == run.session
        replaces = call.method == "StartSession" and call.mode == "FRESH"
        if replaces:
            # It replaces only a session that existed while the call was in progress.
            ends = call.answer_session != run.session and run.created <= call.last_effect
        if ends and (call.ok or call.unclear) and call.first_began <= at:
            undeleted = any(
                other.method == "UndeleteSession"
                and other.ok
                and other.request_session == run.session
                and call.last_effect < other.first_began
                and other.ended < at
                for other in calls
            )
            if not undeleted:
                return True
    return False


def _run(action: Action, began: float, ended: float, keys: Mapping[str, str]) -> Run:
    session = action.labels["roost_session"]
    generation = action.labels.get("roost_generation", "")
    return Run(keys.get(session, "?"), session, generation, action.machine, began, ended)
