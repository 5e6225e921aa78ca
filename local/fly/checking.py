"""Runs the checks of machines against their guests, as long as each boot lasts."""

import asyncio
import contextlib
import time

import httpx

from local.fly import checks
from local.fly.checks import OUTPUT_MAX, Check, Result
from local.fly.guests import Guest
from local.fly.machines import Machine


class Checking:
    """Asks guests how they are. All ports of a guest are the one that it was given in `PORT`."""

    def __init__(self) -> None:
        # Nothing from the environment: a developer's HTTP_PROXY is not for loopback. And no TLS.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(limits=limits, trust_env=False, verify=False)

    async def close(self) -> None:
        """Close the client; no check may be under way."""
        await self._client.aclose()

    def begin(self, machine: Machine, guest: Guest) -> None:
        """Check a boot until it ends. What earlier boots were found to be counts no more."""
        machine.checks = {}
        for check in checks.wanted(machine.record.config):
            machine.watch(self._run(machine, guest, check))

    async def _run(self, machine: Machine, guest: Guest, check: Check) -> None:
        begun = time.monotonic()
        while guest.main.running:
            if _answerable(machine, guest):
                fresh = await self._ask(guest, check)
                in_grace = time.monotonic() - begun < check.grace_s
                blamed = fresh.status == "passing" or not in_grace
                if blamed and _answerable(machine, guest):
                    before = machine.checks.get(check.name)
                    machine.checks[check.name] = before.then(fresh) if before else fresh
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(guest.main.wait(), check.interval_s)

    async def _ask(self, guest: Guest, check: Check) -> Result:
        """What it is found to be; a guest that is gone is as critical as one that refuses."""
        try:
            async with asyncio.timeout(check.timeout_s):
                if check.kind == "http":
                    return await self._ask_http(guest, check)
                return await _connect(guest)
        except TimeoutError:
            return Result("critical", "timed out")
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            return Result("critical", str(error) or type(error).__name__)

    async def _ask_http(self, guest: Guest, check: Check) -> Result:
        url = f"http://127.0.0.1:{guest.port}{check.path}"
        headers = list(check.headers)
        async with self._client.stream(check.method, url, headers=headers, timeout=None) as reply:
            said = b""
            async for part in reply.aiter_bytes(OUTPUT_MAX):
                said += part
                if len(said) >= OUTPUT_MAX:
                    break
            output = said[:OUTPUT_MAX].decode(errors="replace")
            if reply.is_success:
                return Result("passing", output)
            return Result("critical", f"{reply.status_code} {output}".strip())


def _answerable(machine: Machine, guest: Guest) -> bool:
    """Whether the boot runs: a frozen guest answers nobody, and nobody blames it."""
    return machine.state == "started" and machine.guest is guest


async def _connect(guest: Guest) -> Result:
    _, writer = await asyncio.open_connection("127.0.0.1", guest.port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Result("passing", "Success")
