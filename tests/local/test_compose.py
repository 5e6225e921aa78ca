"""compose.yaml and the Dockerfile, as far as they can be checked without Docker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from local.stack.programs import plan
from local.stack.stack_settings import StackSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = YAML(typ="safe").load(ROOT / "compose.yaml")
    found: dict[str, Any] = document["services"]
    return found


def test_ports_are_published_to_this_machine_only(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_permanent_service_has_a_health_check(services: dict[str, Any]) -> None:
    permanent = {name for name in services if name != "app"}
    assert permanent == {name for name, service in services.items() if "healthcheck" in service}


def test_a_first_start_needs_only_a_key_as_under_make_up(services: dict[str, Any]) -> None:
    """The same recipes run on both stacks: the same image, addresses and ports."""
    up = StackSettings()
    session, composed = plan(up, "postgresql:///")[-1], services["session"]["environment"]
    for name in ("ROOST_DEFAULT_IMAGE", "ROOST_URL_TEMPLATE", "ROOST_FLY_APP"):
        assert composed[name] == session.environment[name], name
    published = {port for service in services.values() for port in service.get("ports", [])}
    for number in (up.session_ports[0], up.container_port, up.fly_port, up.proxy_port):
        assert f"127.0.0.1:{number}:{number}" in published


def test_every_build_target_exists_and_is_not_root(services: dict[str, Any]) -> None:
    wanted = {service["build"]["target"] for service in services.values() if "build" in service}
    assert wanted == {"session_service", "container_service", "emulator"}
    for target in wanted:
        match = re.search(rf"AS {target}\n(.*?)(?=\nFROM |\Z)", DOCKERFILE, re.S)
        assert match, target
        assert "USER roost" in match[1]


def test_everything_is_pinned() -> None:
    assert set(re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, re.M)) == {"python:3.11-slim-bookworm"}
    assert DOCKERFILE.count("pip install") == DOCKERFILE.count("--require-hashes") == 2
    assert "# syntax" not in DOCKERFILE


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignore = (ROOT / ".dockerignore").read_text()
    for source in re.findall(r"^COPY (\S+)", DOCKERFILE, re.M):
        assert (ROOT / source).exists(), source
        assert f"!{source}\n" in ignore, source
