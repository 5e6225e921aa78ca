"""Run the health checks of machines against their guests, for as long as each boot lasts."""

import asyncio
import contextlib
import time

import httpx

from local.fly.config import checks
from local.fly.config.checks import OUTPUT_MAX, Check, Result
from local.fly.guests.guest import Guest
from local.fly.machines.machine import Machine


class HealthChecks:
    """Runs health checks. Every port of a config is the guest's one port, given to it in `PORT`."""

    def __init__(self) -> None:
        # `trust_env=False`: a developer's HTTP_PROXY must not apply to loopback. There is no TLS.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(limits=limits, trust_env=False, verify=False)

    async def close(self) -> None:
        """Close the HTTP client. No check may be in progress."""
        await self._client.aclose()

    def begin(self, machine: Machine, guest: Guest) -> None:
        """Begin to check a boot, until it ends. Results of earlier boots are dropped."""
        machine.checks = {}
        for check in checks.wanted(machine.record.config):
            machine.watch(self._run(machine, guest, check))

    async def _run(self, machine: Machine, guest: Guest, check: Check) -> None:
        begun = time.monotonic()
        while guest.main.running:
            if _is_running(machine, guest):
                fresh = await self._check(guest, check)
                in_grace = time.monotonic() - begun < check.grace_s
                counts = fresh.status == "passing" or not in_grace
                if counts and _is_running(machine, guest):
                    before = machine.checks.get(check.name)
                    machine.checks[check.name] = before.then(fresh) if before else fresh
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(guest.main.wait(), check.interval_s)

    async def _check(self, guest: Guest, check: Check) -> Result:
        """Run one check. A refused connection, an error or a timeout is `critical`."""
        try:
            async with asyncio.timeout(check.timeout_s):
                if check.kind == "http":
                    return await self._check_http(guest, check)
                return await _connect(guest)
        except TimeoutError:
            return Result("critical", "timed out")
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            return Result("critical", str(error) or type(error).__name__)

    async def _check_http(self, guest: Guest, check: Check) -> Result:
        url = f"http://127.0.0.1:{guest.port}{check.path}"
        headers = list(check.headers)
        async with self._client.stream(check.method, url, headers=headers, timeout=None) as reply:
            received = b""
            async for part in reply.aiter_bytes(OUTPUT_MAX):
                received += part
                if len(received) >= OUTPUT_MAX:
                    break
            output = received[:OUTPUT_MAX].decode(errors="replace")
            if reply.is_success:
                return Result("passing", output)
            return Result("critical", f"{reply.status_code} {output}".strip())


def _is_running(machine: Machine, guest: Guest) -> bool:
    """Whether this boot runs. A suspended guest cannot answer, and that is no failure."""
    return machine.state == "started" and machine.guest is guest


async def _connect(guest: Guest) -> Result:
    _, writer = await asyncio.open_connection("127.0.0.1", guest.port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Result("passing", "Success")
