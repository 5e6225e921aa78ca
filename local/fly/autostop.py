"""What fly-proxy does with machines that nobody talks to."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from local.fly import configs, leases
from local.fly.errors import ApiError
from local.fly.fleet import Fleet
from local.fly.lifecycle import Lifecycle, stop_order
from local.fly.machines import Machine
from local.fly.settings import Settings


@dataclass
class Traffic:
    """Who is being talked to: requests under way, and when the last one ended."""

    under_way: Counter[str] = field(default_factory=Counter)
    ended: dict[str, float] = field(default_factory=dict)

    def begin(self, machine_id: str) -> None:
        """A request has come."""
        self.under_way[machine_id] += 1

    def end(self, machine_id: str) -> None:
        """It is answered."""
        self.under_way[machine_id] -= 1
        self.ended[machine_id] = time.monotonic()

    def idle(self, machine_id: str, since: float) -> bool:
        """Whether nobody has talked to it from that moment on."""
        return not self.under_way[machine_id] and self.ended.get(machine_id, 0.0) <= since


class Autostop:
    """Stops or suspends idle machines whose services say so: at most one per region and pass."""

    def __init__(
        self, settings: Settings, fleet: Fleet, lifecycle: Lifecycle, traffic: Traffic
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._traffic = traffic

    async def run(self) -> None:
        """Pass after pass, until cancelled; for ever nothing where it is switched off."""
        period = self._settings.autostop_ms / 1000
        while period:
            await asyncio.sleep(period)
            self.sweep(time.monotonic() - period)

    def sweep(self, idle_since: float) -> list[str]:
        """One pass; the machines that were brought to rest."""
        rested = []
        for group in self._groups().values():
            spare = len(group) - configs.min_running(group[0].record.config)
            idle = [one for one in group if self._traffic.idle(one.id, idle_since)]
            if spare > 0 and idle and self._rest(idle[0]):
                rested.append(idle[0].id)
        return rested

    def _groups(self) -> dict[tuple[str, str], list[Machine]]:
        """Started machines that may be stopped, by app and region."""
        groups: dict[tuple[str, str], list[Machine]] = {}
        for machine in _stoppable(self._fleet.all()):
            place = (machine.record.app, machine.record.region)
            groups.setdefault(place, []).append(machine)
        return groups

    def _rest(self, machine: Machine) -> bool:
        try:
            leases.check(machine, "", self._settings)
            wanted = configs.autostop(machine.record.config)
            # It falls back to a stop where a suspend is impossible.
            if wanted == "suspend" and configs.suspendable(machine.record.config):
                self._lifecycle.suspend(machine, "proxy")
            else:
                order = stop_order(machine.record, None, None)
                self._lifecycle.stop(machine, order, "proxy")
        except ApiError:
            return False
        return True


def _stoppable(machines: Iterable[Machine]) -> list[Machine]:
    return [
        machine
        for machine in machines
        if machine.state == "started" and configs.autostop(machine.record.config)
    ]
