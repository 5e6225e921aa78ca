"""Machine leases: one holder at a time, identified by a nonce."""

import time

from local.fly import errors, ids
from local.fly.clock import rfc3339
from local.fly.errors import ApiError
from local.fly.machines.machine import Machine
from local.fly.records.machine_records import Lease
from local.fly.settings import Settings


def held(machine: Machine) -> Lease | None:
    """The current lease; None when there is none or it has expired."""
    lease = machine.record.lease
    return lease if lease is not None and lease.expires_at > time.time() else None


def check(machine: Machine, nonce: str, settings: Settings) -> None:
    """Raise LeaseError for a mutation that the lease does not allow.

    Call it in the step of the event loop that commits the mutation, not before an await. Without a
    nonce a mutation passes only while there is no lease. A nonce whose lease has ended is rejected
    too, so that a late request of a former holder changes nothing. Fly does not document that case;
    see `Settings.stale_nonce`.
    """
    lease = held(machine)
    if lease is not None and lease.nonce != nonce:
        raise _held_error(machine, lease)
    if lease is None and nonce and settings.stale_nonce == "refuse":
        raise errors.stale_nonce(machine.id)


def acquire(machine: Machine, ttl_s: int, owner: str, description: str, nonce: str) -> Lease:
    """Acquire the lease for `ttl_s` seconds, or extend it if `nonce` is its nonce."""
    if ttl_s <= 0:
        raise ApiError(400, "invalid_argument: lease ttl must be positive")
    current = held(machine)
    if current is not None and current.nonce != nonce:
        raise _held_error(machine, current)
    if current is None and nonce:
        raise errors.lease_not_found()
    lease = Lease(
        nonce=nonce or ids.nonce(),
        expires_at=time.time() + ttl_s,
        owner=owner,
        description=description,
        version=machine.record.instance_id,
    )
    machine.set_lease(lease)
    return lease


def release(machine: Machine, nonce: str) -> None:
    """Release the lease."""
    lease = held(machine)
    if lease is None:
        raise errors.lease_not_found()
    if lease.nonce != nonce:
        raise _held_error(machine, lease)
    machine.set_lease(None)


def _held_error(machine: Machine, lease: Lease) -> errors.LeaseError:
    return errors.lease_held(machine.id, lease.owner, rfc3339(lease.expires_at))
