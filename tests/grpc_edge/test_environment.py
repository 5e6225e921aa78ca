"""Names of environment variables that no service knows: near ones are refused, others are told."""

from __future__ import annotations

import os
import string
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_service import config as container_config
from grpc_edge.environment import NAMES, UnknownName, injected, unknown
from session_service import failpoints
from session_service.config import variables
from tests.service_processes import fork

if TYPE_CHECKING:
    from tests.service_processes import Forked

#: What Kubernetes sets in each container of a namespace with the services `roost-session-service`
#: and `roost`.
KUBERNETES = {
    "ROOST_SESSION_SERVICE_SERVICE_HOST": "10.0.0.7",
    "ROOST_SESSION_SERVICE_SERVICE_PORT": "50051",
    "ROOST_SESSION_SERVICE_SERVICE_PORT_GRPC": "50051",
    "ROOST_SESSION_SERVICE_PORT": "tcp://10.0.0.7:50051",
    "ROOST_SESSION_SERVICE_PORT_50051_TCP": "tcp://10.0.0.7:50051",
    "ROOST_SESSION_SERVICE_PORT_50051_TCP_PROTO": "tcp",
    "ROOST_SESSION_SERVICE_PORT_50051_TCP_PORT": "50051",
    "ROOST_SESSION_SERVICE_PORT_50051_TCP_ADDR": "10.0.0.7",
    "ROOST_SERVICE_HOST": "10.0.0.8",
    "ROOST_SERVICE_PORT": "80",
    "ROOST_PORT": "tcp://10.0.0.8:80",
    "ROOST_PORT_80_UDP": "udp://10.0.0.8:80",
}
#: What each service needs to begin, so that it reads the rest of its environment.
NEEDED = {
    "session_service": {"ROOST_DATABASE_URL": "postgresql://roost@127.0.0.1:9/roost"},
    "container_service": {"FLY_API_TOKEN": "a-token"},
}
LETTERS = string.ascii_uppercase + "_"


def test_the_names_are_those_of_both_services() -> None:
    """Each service is also given the variables of the other one, by `make up` and by people."""
    ours = {each.name for each in (*variables.VARIABLES, *container_config.VARIABLES)}
    ours |= {failpoints.VARIABLE}
    assert {name for name in ours if name.startswith("ROOST_")} == NAMES


@given(st.sampled_from(sorted(NAMES)), st.data())
def test_a_name_with_two_wrong_letters_is_refused_with_the_right_one(
    name: str, data: st.DataObject
) -> None:
    """Whichever letters are missing, changed or too many."""
    wrong = name
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(len("ROOST_"), len(wrong) - 1))
        letter = data.draw(st.sampled_from(LETTERS))
        missing = wrong[:at] + wrong[at + 1 :]
        extra = wrong[:at] + letter + wrong[at:]
        changed = wrong[:at] + letter + wrong[at + 1 :]
        wrong = data.draw(st.sampled_from((missing, extra, changed)))
    if wrong in NAMES or injected(wrong, "1"):
        return
    with pytest.raises(
        UnknownName, match=rf"^{wrong} is no known variable: did you mean ROOST_"
    ) as raised:
        unknown({wrong: "1"}, NAMES)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("ROOST_DATABSE_URL", "ROOST_DATABASE_URL"),
        ("ROOST_LOGLEVEL", "ROOST_LOG_LEVEL"),
        ("ROOST_POOLSIZE", "ROOST_POOL_SIZE"),
        ("ROOST_POOL_SZIE", "ROOST_POOL_SIZE"),
        ("ROOST_GRACE_PERIODS", "ROOST_GRACE_PERIOD"),
        ("ROOST_SWEEPS", "ROOST_SWEEP"),
    ],
)
def test_the_nearest_name_is_named(wrong: str, right: str) -> None:
    with pytest.raises(UnknownName, match=f"did you mean {right}\\?"):
        unknown({wrong: "1"}, NAMES)


def test_other_unknown_names_are_returned() -> None:
    """Without those that Kubernetes sets, those without a value, and those of other programs."""
    environment = KUBERNETES | {"ROOST_COLOUR": "red", "ROOST_FLAVOUR": "", "PATH": "/bin"}
    assert unknown(environment, NAMES) == ["ROOST_COLOUR"]
    # A port that is a number is no address of a service.
    assert unknown({"ROOST_METRICS_PORT": "9090"}, NAMES) == ["ROOST_METRICS_PORT"]


async def run(service: str, **more: str) -> Forked:
    environment = {"PATH": os.environ["PATH"]} | NEEDED[service] | more
    return await fork(service, environment=environment)


@pytest.mark.parametrize("service", sorted(NEEDED))
async def test_a_service_ends_with_one_line(service: str) -> None:
    """And the status of a wrong configuration."""
    process = await run(service, ROOST_LOG_LEVLE="DEBUG", **KUBERNETES)
    _, err = await process.communicate()
    assert process.returncode == 2
    assert (
        err.decode()
        == f"{service}: ROOST_LOG_LEVLE is no known variable: did you mean ROOST_LOG_LEVEL?\n"
    )


@pytest.mark.parametrize("service", sorted(NEEDED))
async def test_a_service_warns_of_other_unknown_names(service: str) -> None:
    """Once, in one line; a name that only the other service reads is known too."""
    known = {"ROOST_TIER": "free", "ROOST_FLY_RETRY_RATIO": "0.2"}
    listen = {f"ROOST_{service.partition('_')[0].upper()}_LISTEN": "203.0.113.1:1"}
    more = {"ROOST_COLOUR": "red", "ROOST_SHAPE_OF_IT": "round"} | known | listen | KUBERNETES
    process = await run(service, **more)
    _, err = await process.communicate()
    told = [line for line in err.decode().splitlines() if "WARNING" in line and "ROOST_" in line]
    assert len(told) == 1, err.decode()
    assert "unknown variables are ignored: ROOST_COLOUR, ROOST_SHAPE_OF_IT" in told[0]
