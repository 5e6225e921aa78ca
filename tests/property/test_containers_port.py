"""One contract for every implementation of `ports.Containers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from session_service import errors
from session_service.domain.session import ContainerState
from session_service.ports import Address, ContainerAbsent, LeaseHeld, LeaseLost

if TYPE_CHECKING:
    from session_service.ports import Containers, Seen

SPEC = {"image": "roost/counter"}
LABELS = {"roost_installation": "i", "roost_session": "s", "roost_generation": "1"}
#: One call, in s.
TIMEOUT = 20.0


async def created(containers: Containers, app: str, name: str = "roost-s-1") -> Seen:
    """A running container."""
    seen = await containers.create(app, name, SPEC, LABELS, timeout=TIMEOUT)
    await containers.wait_started(seen.address, timeout=TIMEOUT)
    return await containers.get(seen.address, timeout=TIMEOUT)


async def leased(containers: Containers, where: Address) -> str:
    """The nonce of a lease that outlives a test."""
    return await containers.acquire_lease(where, ttl=30, wait=0, timeout=TIMEOUT)


async def test_create_is_idempotent_by_name(containers: Containers, app: str) -> None:
    """The same name is the same container; with another spec the create fails."""
    first = await created(containers, app)
    assert (await created(containers, app)).address == first.address
    with pytest.raises(errors.ProviderRefused):
        await containers.create(
            app, "roost-s-1", {"image": "roost/counter", "env": {"A": "b"}}, LABELS, timeout=TIMEOUT
        )
    assert (await created(containers, app, "roost-s-2")).address != first.address


async def test_a_listing_filters_by_labels_and_omits_destroyed_containers(
    containers: Containers, app: str
) -> None:
    """All labels must match. The listing has labels and creation times."""
    seen = await created(containers, app)
    listed = await containers.list(app, {"roost_session": "s"}, timeout=TIMEOUT)
    assert [item.address for item in listed] == [seen.address]
    assert listed[0].labels.items() >= LABELS.items()
    assert listed[0].create_time is not None
    assert await containers.list(app, {"roost_session": "t"}, timeout=TIMEOUT) == []
    await containers.destroy(seen.address, None, timeout=TIMEOUT)
    assert await containers.list(app, {"roost_session": "s"}, timeout=TIMEOUT) == []


async def test_a_missing_container_is_absent(containers: Containers, app: str) -> None:
    """ContainerAbsent; a destruction succeeds."""
    nowhere = Address(app, "0000000000000a")
    with pytest.raises(ContainerAbsent):
        await containers.get(nowhere, timeout=TIMEOUT)
    await containers.destroy(nowhere, None, timeout=TIMEOUT)
    assert await containers.read_boot_id(nowhere, timeout=TIMEOUT) is None


async def test_a_suspend_keeps_the_boot_and_a_stop_does_not(
    containers: Containers, app: str
) -> None:
    """The boot id proves whether memory survived; resuming a running container changes nothing."""
    where = (await created(containers, app)).address
    boot_id = await containers.read_boot_id(where, timeout=TIMEOUT)
    assert boot_id
    nonce = await leased(containers, where)
    assert (await containers.suspend(where, nonce, timeout=TIMEOUT)).state is (
        ContainerState.SUSPENDED
    )
    assert await containers.wait_paused(where, timeout=TIMEOUT) is ContainerState.SUSPENDED
    await containers.release_lease(where, nonce, timeout=TIMEOUT)
    for _ in range(2):
        booted = await containers.resume(where, boot_id, timeout=TIMEOUT)
        assert (booted.memory_preserved, booted.boot_id) == (True, boot_id)
    nonce = await leased(containers, where)
    assert (await containers.stop(where, nonce, timeout=TIMEOUT)).state is ContainerState.STOPPED
    await containers.release_lease(where, nonce, timeout=TIMEOUT)
    before = (await containers.get(where, timeout=TIMEOUT)).last_start_time
    booted = await containers.resume(where, boot_id, timeout=TIMEOUT)
    assert booted.memory_preserved is False
    assert booted.boot_id not in (None, boot_id)
    after = (await containers.get(where, timeout=TIMEOUT)).last_start_time
    assert before is not None and after is not None and after > before


async def test_a_lease_fences(containers: Containers, app: str) -> None:
    """LeaseHeld for another caller, LeaseLost for a wrong nonce; after the release it is free."""
    where = (await created(containers, app)).address
    nonce = await leased(containers, where)
    with pytest.raises(LeaseHeld):
        await leased(containers, where)
    with pytest.raises(LeaseLost):
        await containers.suspend(where, "not-a-nonce", timeout=TIMEOUT)
    assert (await containers.get(where, timeout=TIMEOUT)).state is ContainerState.STARTED
    await containers.release_lease(where, nonce, timeout=TIMEOUT)
    again = await leased(containers, where)
    with pytest.raises(LeaseLost):
        await containers.stop(where, nonce, timeout=TIMEOUT)
    await containers.destroy(where, again, timeout=TIMEOUT)
    await containers.destroy(where, None, timeout=TIMEOUT)


async def test_cordoned_and_back(containers: Containers, app: str) -> None:
    """Cordoned under a lease, uncordoned without one."""
    where = (await created(containers, app)).address
    nonce = await leased(containers, where)
    await containers.cordon(where, nonce, timeout=TIMEOUT)
    assert (await containers.get(where, timeout=TIMEOUT)).cordoned
    await containers.release_lease(where, nonce, timeout=TIMEOUT)
    await containers.uncordon(where, timeout=TIMEOUT)
    assert not (await containers.get(where, timeout=TIMEOUT)).cordoned
