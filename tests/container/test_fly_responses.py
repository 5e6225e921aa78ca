"""Fly's error responses and their errors, and Fly's JSON and the model."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_service.containers import errors
from container_service.containers.model import (
    Container,
    ContainerSpec,
    ContainerState,
    Guest,
    Mount,
    ServicePort,
    spec_hash,
)
from container_service.fly import schema
from container_service.fly.errors import (
    NoLease,
    NotReached,
    RequestRejected,
    UnknownApp,
    classify,
    read_error_response,
)

HEADERS = {"fly-request-id": "01JNRQ9VVKJ7HZFMJWJB3M3RYN-yyz"}


def classified(status: int, body: Any, *, nonce: str = "", changes: bool = True) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify(read_error_response(status, HEADERS, raw, changes=changes, nonce=nonce))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": "invalid_argument: bad"}, RequestRejected),
        (401, {"error": "Authenticate: token validation error"}, errors.ProviderRefused),
        (403, {"error": "unauthorized"}, errors.ProviderRefused),
        (404, {"error": "machine not found"}, errors.ContainerNotFound),
        (404, {"error": "invalid machine ID, 'x'"}, errors.ContainerNotFound),
        (404, {"error": "app not found"}, UnknownApp),
        (404, {"error": 'Could not find App "x"'}, UnknownApp),
        (404, {"error": "lease not found"}, NoLease),
        (404, b"<html>nothing here</html>", errors.ProviderUnavailable),
        (404, b"", errors.ProviderUnavailable),
        (
            408,
            {
                "error": "deadline_exceeded: machine failed to reach desired state, started,"
                " currently stopped"
            },
            NotReached,
        ),
        (408, {"error": "deadline_exceeded: flaps"}, errors.OutcomeUnknown),
        (409, {"error": "aborted: machine still attempting to start"}, errors.NotStartableYet),
        (409, {"error": "aborted: concurrent update in progress"}, errors.NotStartableYet),
        (
            409,
            {"error": "aborted: could not reserve resource for machine: insufficient memory"},
            errors.ProviderCapacity,
        ),
        (409, {"error": "aborted: no capacity"}, errors.ProviderCapacity),
        (409, {"error": "something new"}, errors.StateConflict),
        (412, {"error": "machine still active, refusing to start"}, errors.NotStartableYet),
        (
            412,
            {"error": "failed_precondition: unable to start machine from current state: 'created'"},
            errors.NotStartableYet,
        ),
        (
            412,
            {"error": "machine getting replaced, refusing to start"},
            errors.NotStartableYet,
        ),
        (412, {"error": "x", "status": "volume_placement_capacity"}, errors.ProviderCapacity),
        (412, {"error": "unable to destroy machine, not currently stopped"}, errors.StateConflict),
        (422, {"error": "new words", "status": "insufficient_capacity"}, errors.ProviderCapacity),
        (422, {"error": "could not find a candidate host"}, errors.ProviderCapacity),
        (422, {"error": "please add a payment method"}, RequestRejected),
        (429, {"error": "rate limit exceeded"}, errors.ProviderRateLimited),
        (500, {"error": "boom"}, errors.OutcomeUnknown),
        (502, b"bad gateway", errors.OutcomeUnknown),
        (418, {"error": "teapot"}, errors.ProviderRefused),
    ],
)  # fmt: skip
def test_each_error_response_maps_to_its_error(status: int, body: Any, kind: type) -> None:
    error = classified(status, body)
    assert type(error) is kind
    assert isinstance(error, errors.ServiceError)
    assert error.provider_request_id == HEADERS["fly-request-id"]


def test_a_failed_read_is_unavailable_and_not_outcome_unknown() -> None:
    assert type(classified(503, b"", changes=False)) is errors.ProviderUnavailable


def test_name_taken_has_the_id_of_the_container() -> None:
    text = (
        "already_exists: unique machine name violation, machine ID 1857156b526dd8 already exists"
        ' with name "roost-wren-1"'
    )
    error = classified(409, {"error": text})
    assert isinstance(error, errors.NameTaken)
    assert error.container_id == "1857156b526dd8"


LEASE = "machine ID 1857156b526dd8 lease currently held by someone@example.com, expires at "


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T05:30:00Z", datetime(2026, 11, 22, 5, 30, tzinfo=UTC)),
        ("2026-11-22T05:30:00.25Z", datetime(2026, 11, 22, 5, 30, 0, 250_000, tzinfo=UTC)),
        ("2026-11-22 05:30:00 +0000 UTC", datetime(2026, 11, 22, 5, 30, tzinfo=UTC)),
        ("tomorrow", None),
        ("", None),
    ],
)
def test_lease_held_has_the_expiry_and_not_the_holder(text: str, moment: datetime | None) -> None:
    error = classified(409, {"status": "error", "message": LEASE + text, "code": "invalid"})
    assert isinstance(error, errors.LeaseHeld)
    assert error.expire_time == moment
    assert "example.com" not in str(error)


def test_the_same_error_for_a_call_with_a_nonce_is_lease_lost() -> None:
    error = classified(409, {"message": LEASE + "soon"}, nonce="5c35f65c9f95")
    assert isinstance(error, errors.LeaseLost)
    assert "5c35f65c9f95" not in repr(error)


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7.0), ("999", 60.0), ("-1", 0.0), ("soon", None), ("", None)]
)
def test_only_a_numeric_retry_after_counts(text: str, seconds: float | None) -> None:
    headers = HEADERS | {"retry-after": text}
    response = read_error_response(429, headers, b"{}", changes=True)
    assert response.retry_after == seconds


@given(
    st.integers(400, 599),
    st.one_of(
        st.binary(max_size=50),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=10),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["error", "message", "status", "x"]), inner, max_size=3
                )
            ),
            max_leaves=6,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    st.booleans(),
)
def test_any_error_response_maps_to_an_error(status: int, body: bytes, changes: bool) -> None:
    error = classify(read_error_response(status, {}, body, changes=changes))
    assert isinstance(error, errors.ServiceError)


MACHINE: dict[str, Any] = {
    "id": "1857156b526dd8",
    "name": "roost-wren-1",
    "state": "started",
    "region": "ord",
    "instance_id": "01HEPA330HZ37A78TK080NAK1M",
    "created_at": "2023-11-08T01:52:30Z",
    "updated_at": "2023-11-08T01:53:30.123Z",
    "host_status": "ok",
    "cordoned": True,
    "config": {"metadata": {"roost_session": "wren", "roost_spec_hash": "abc"}},
    "events": [
        {"type": "exit", "status": "stopped", "timestamp": 9000},
        {"type": "start", "status": "starting", "timestamp": 8000},
        {"type": "start", "status": "started", "timestamp": 1500},
        {"type": "start", "status": "started", "timestamp": 7000},
        {"type": "launch", "status": "created", "timestamp": 1000},
    ],
}


def read(**changes: Any) -> Container:
    return schema.read_machine("birds", MACHINE | changes)


def test_every_field_of_a_machine_is_read() -> None:
    container = read()
    assert container.ref.app == "birds"
    assert container.state is ContainerState.STARTED
    assert container.labels == {"roost_session": "wren"}
    assert container.spec_hash == "abc"
    assert container.cordoned
    assert container.create_time == datetime(2023, 11, 8, 1, 52, 30, tzinfo=UTC)
    assert container.last_start_time == datetime.fromtimestamp(7, UTC)


def test_an_unknown_state_is_unknown_and_keeps_the_word_of_fly() -> None:
    container = read(state="levitating")
    assert container.state is ContainerState.UNKNOWN
    assert container.provider_state == "levitating"


@pytest.mark.parametrize("missing", sorted(set(MACHINE) - {"id"}))
def test_any_field_but_the_id_may_be_missing_or_null(missing: str) -> None:
    without = {key: value for key, value in MACHINE.items() if key != missing}
    schema.read_machine("birds", without)
    read(**{missing: None})


@pytest.mark.parametrize("status", ["unknown", "unreachable"])
def test_an_unreachable_host_is_reported(status: str) -> None:
    container = read(host_status=status, config=None, incomplete_config=None)
    assert not container.host_reachable
    assert container.labels == {}


@pytest.mark.parametrize("body", [None, [], "text", 3, {}, {"id": 7}, {"id": ""}])
def test_a_body_that_is_not_a_machine_is_an_error(body: Any) -> None:
    with pytest.raises(errors.ProviderUnavailable):
        schema.read_machine("birds", body)


@pytest.mark.parametrize("body", [None, {}, "text", [MACHINE, None], [3]])
def test_an_incomplete_list_is_an_error(body: Any) -> None:
    with pytest.raises(errors.ProviderUnavailable):
        schema.read_list(body)


def test_a_list_includes_machines_whose_labels_cannot_be_read() -> None:
    assert schema.may_have_labels(MACHINE, {"roost_session": "wren"})
    assert not schema.may_have_labels(MACHINE, {"roost_session": "owl"})
    assert schema.may_have_labels(MACHINE | {"config": None}, {"roost_session": "owl"})


def test_a_lease_is_read_with_and_without_an_envelope() -> None:
    flat = {"nonce": "n", "expires_at": 1_700_000_000, "owner": "o", "description": "d"}
    for body in (flat, {"status": "success", "data": flat}):
        lease = schema.read_lease(body)
        assert (lease.nonce, lease.owner, lease.description) == ("n", "o", "d")
        assert lease.expire_time == datetime.fromtimestamp(1_700_000_000, UTC)
        assert "'n'" not in repr(lease)


def test_a_default_machine_can_be_suspended_and_keeps_its_files() -> None:
    body = schema.write_create("roost-wren-1", ContainerSpec("roost/base"), {"a": "b"})
    assert body == {
        "name": "roost-wren-1",
        "config": {
            "image": "roost/base",
            "env": {},
            "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
            "rootfs": {"persist": "restart"},
            "services": [
                {
                    "protocol": "tcp",
                    "internal_port": 8080,
                    "ports": [
                        {"port": 80, "handlers": ["http"]},
                        {"port": 443, "handlers": ["tls", "http"]},
                    ],
                    "autostart": True,
                    "autostop": "off",
                }
            ],
            "restart": {"policy": "on-failure"},
            "stop_config": {"timeout": "5s"},
            "metadata": {"a": "b", "roost_spec_hash": spec_hash(ContainerSpec("roost/base"))},
        },
    }


def test_every_field_of_a_spec_is_written() -> None:
    spec = ContainerSpec(
        "roost/base",
        region="ord",
        services=(ServicePort(8080), ServicePort(53, "udp", autostart=False)),
        command=("serve", "--fast"),
        ephemeral_root_filesystem=True,
        mounts=(Mount("vol_1", "/data"),),
        stop_timeout_seconds=2.5,
    )
    body = schema.write_create("n", spec, {})
    config = body["config"]
    assert body["region"] == "ord"
    assert config["rootfs"] == {"persist": "never"}
    assert config["init"] == {"cmd": ["serve", "--fast"]}
    assert config["mounts"] == [{"volume": "vol_1", "path": "/data"}]
    assert config["stop_config"] == {"timeout": "2500ms"}
    assert config["services"][1]["ports"] == [{"port": 53}]
    assert config["services"][1]["autostart"] is False


def test_the_spec_hash_ignores_order_and_never_changes() -> None:
    """A different hash would reject every container that an older release created."""
    spec = ContainerSpec("roost/base", env={"A": "1", "B": "2"})
    assert spec_hash(spec) == spec_hash(ContainerSpec("roost/base", env={"B": "2", "A": "1"}))
    assert spec_hash(spec) == "7870fbe491590e626fe721c9fe409363d58373cad4d8147c4e10892c1a33a69b"
    for other in (
        ContainerSpec("roost/base", env={"A": "1", "B": "3"}),
        ContainerSpec("roost/base", env={"A": "1", "B": "2"}, guest=Guest(memory_mb=512)),
        ContainerSpec("roost/base", env={"A": "1", "B": "2"}, region="ord"),
    ):
        assert spec_hash(other) != spec_hash(spec)
