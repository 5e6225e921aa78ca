"""Autostop: stop or suspend machines that get no traffic, as fly-proxy does."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from local.fly.config import configs
from local.fly.errors import ApiError
from local.fly.machines import leases
from local.fly.machines.fleet import Fleet
from local.fly.machines.lifecycle import Lifecycle, stop_request
from local.fly.machines.machine import Machine
from local.fly.settings import Settings


@dataclass
class Traffic:
    """Per machine: the number of requests in progress, and the end of the last one."""

    in_progress: Counter[str] = field(default_factory=Counter)
    ended: dict[str, float] = field(default_factory=dict)

    def begin(self, machine_id: str) -> None:
        """Count a request that begins."""
        self.in_progress[machine_id] += 1

    def end(self, machine_id: str) -> None:
        """Count its end."""
        self.in_progress[machine_id] -= 1
        self.ended[machine_id] = time.monotonic()

    def idle(self, machine_id: str, since: float) -> bool:
        """Whether it had no request from `since` (monotonic seconds) on."""
        return not self.in_progress[machine_id] and self.ended.get(machine_id, 0.0) <= since


class Autostop:
    """Stops or suspends idle machines whose services ask for it, one per app, region and pass."""

    def __init__(
        self, settings: Settings, fleet: Fleet, lifecycle: Lifecycle, traffic: Traffic
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._traffic = traffic

    async def run(self) -> None:
        """Run a pass each period until cancelled; return at once if it is switched off."""
        period = self._settings.autostop_ms / 1000
        while period:
            await asyncio.sleep(period)
            self.run_once(time.monotonic() - period)

    def run_once(self, idle_since: float) -> list[str]:
        """Run one pass; return the ids of the machines that it stopped or suspended."""
        stopped = []
        for group in self._groups().values():
            spare = len(group) - configs.min_running(group[0].record.config)
            idle = [one for one in group if self._traffic.idle(one.id, idle_since)]
            if spare > 0 and idle and self._stop(idle[0]):
                stopped.append(idle[0].id)
        return stopped

    def _groups(self) -> dict[tuple[str, str], list[Machine]]:
        """Started machines that may be stopped, by app and region."""
        groups: dict[tuple[str, str], list[Machine]] = {}
        for machine in _stoppable(self._fleet.all()):
            place = (machine.record.app, machine.record.region)
            groups.setdefault(place, []).append(machine)
        return groups

    def _stop(self, machine: Machine) -> bool:
        try:
            leases.check(machine, "", self._settings)
            wanted = configs.autostop(machine.record.config)
            # Where a suspend is impossible, fly-proxy stops the machine instead.
            if wanted == "suspend" and configs.suspendable(machine.record.config):
                self._lifecycle.suspend(machine, "proxy")
            else:
                request = stop_request(machine.record, None, None)
                self._lifecycle.stop(machine, request, "proxy")
        except ApiError:
            return False
        return True


def _stoppable(machines: Iterable[Machine]) -> list[Machine]:
    return [
        machine
        for machine in machines
        if machine.state == "started" and configs.autostop(machine.record.config)
    ]
