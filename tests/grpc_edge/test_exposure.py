"""Which addresses other machines reach, and where a service refuses to serve."""

from __future__ import annotations

import asyncio

import pytest

from container_service.config import Config as ContainerConfig
from grpc_edge.exposure import is_loopback
from session_service.config import Config, ConfigError
from tests.container.harness import launch as launch_containers
from tests.open_processes import ended
from tests.session.test_process import NOWHERE, launch, outcome

LOOPBACK = ("127.0.0.1:1", "127.9.9.9:1", "localhost:1", "LOCALHOST:1", "[::1]:1")
BEYOND = ("0.0.0.0:1", "[::]:1", "10.1.2.3:1", "[fe80::1]:1", "db.localhost.example:1")


def test_loopback_is_told_from_what_others_reach() -> None:
    """A name is beyond loopback, whatever it stands for."""
    assert [address for address in LOOPBACK if not is_loopback(address)] == []
    assert [address for address in BEYOND if is_loopback(address)] == []


@pytest.mark.parametrize("address", BEYOND)
def test_plain_text_beyond_loopback_needs_a_word(address: str) -> None:
    """The reason names the variables that are missing."""
    plain = Config(NOWHERE, listen=address)
    assert "ROOST_TLS_CERT, ROOST_TLS_KEY and ROOST_TLS_CLIENT_CA" in plain.exposed
    encrypted = Config(NOWHERE, listen=address, tls_cert="a", tls_key="b")
    assert "set ROOST_TLS_CLIENT_CA," in encrypted.exposed
    both = Config(NOWHERE, listen=address, tls_cert="a", tls_key="b", tls_client_ca="c")
    assert not both.exposed

    target = Config(NOWHERE, container_target=address)
    assert target.exposed.startswith("ROOST_CONTAINER_TARGET")
    assert not Config(NOWHERE, container_target=address, container_tls_ca="c").exposed

    containers = ContainerConfig(fly_token="t", listen=address)
    assert containers.exposed.startswith("ROOST_CONTAINER_LISTEN")


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"ROOST_TLS_CERT": "a"}, "ROOST_TLS_KEY"),
        ({"ROOST_TLS_KEY": "a"}, "ROOST_TLS_CERT"),
        ({"ROOST_TLS_CLIENT_CA": "a"}, "ROOST_TLS_CERT"),
        (
            {"ROOST_CONTAINER_TLS_CERT": "a", "ROOST_CONTAINER_TLS_KEY": "b"},
            "ROOST_CONTAINER_TLS_CA",
        ),
        (
            {"ROOST_CONTAINER_TLS_CA": "a", "ROOST_CONTAINER_TLS_KEY": "b"},
            "ROOST_CONTAINER_TLS_CERT",
        ),
    ],
)
def test_half_of_the_settings_is_refused(given: dict[str, str], missing: str) -> None:
    """By the name of the other half."""
    with pytest.raises(ConfigError, match=f"^{missing} is not set"):
        Config.from_env({"ROOST_DATABASE_URL": NOWHERE} | given)


async def test_a_service_beyond_loopback_does_not_start() -> None:
    """One line and status 2, before the database or Fly is asked."""
    session = await outcome(
        await launch(ROOST_DATABASE_URL=NOWHERE, ROOST_SESSION_LISTEN="0.0.0.0:0")
    )
    process = await launch_containers(ROOST_CONTAINER_LISTEN="0.0.0.0:0")
    _, err = await ended(process)
    for status, text, variable in (
        (session[0], session[2], "ROOST_SESSION_LISTEN"),
        (process.returncode, err.decode(), "ROOST_CONTAINER_LISTEN"),
    ):
        assert status == 2
        assert text.count("\n") == 1
        assert f"{variable}: 0.0.0.0:0 can be reached from other machines" in text
        assert "ROOST_INSECURE=true" in text


async def test_a_wrong_file_ends_the_start() -> None:
    """One line and status 2."""
    paths = {"ROOST_TLS_CERT": "/absent/cert", "ROOST_TLS_KEY": "/absent/key"}
    session = await outcome(await launch(ROOST_DATABASE_URL=NOWHERE, **paths))
    process = await launch_containers(**paths)
    _, err = await ended(process)
    for status, text in ((session[0], session[2]), (process.returncode, err.decode())):
        assert status == 2
        assert text.count("\n") == 1
        assert "ROOST_TLS_CERT: /absent/cert: No such file or directory" in text


def test_a_command_calls_container_service_as_the_service_does() -> None:
    """`sweep` and the import of sessions take the same channel."""
    with pytest.raises(ConfigError, match=r"^ROOST_CONTAINER_TARGET: "):
        Config(NOWHERE, container_target="10.1.2.3:1").check_target()
    Config(NOWHERE, container_target="10.1.2.3:1", insecure=True).check_target()
    Config(NOWHERE, container_target="10.1.2.3:1", container_tls_ca="c").check_target()


async def test_the_word_lets_a_service_serve_beyond_loopback() -> None:
    """Each start says so. The port answers, and is closed at once."""
    environment = {"ROOST_CONTAINER_LISTEN": "0.0.0.0:0", "ROOST_INSECURE": "true"}
    process = await launch_containers(**environment)
    assert process.stderr is not None
    text = ""
    while "Serving on" not in text:
        line = await asyncio.wait_for(process.stderr.readline(), 60)
        assert line, text
        text += line.decode()
    process.terminate()
    await ended(process)
    assert "WARNING" in text
    assert "ROOST_INSECURE lets strangers in" in text
    assert "0.0.0.0:0 can be reached from other machines" in text
