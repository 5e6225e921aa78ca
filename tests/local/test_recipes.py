"""Every call that the documents print runs, with the real grpcurl, ghz and buf curl."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.needs import needs
from tests.recipes import (
    ADDRESS,
    SECONDS,
    Kitchen,
    Recipe,
    RecipeFailed,
    documents,
    hints_of,
    output_of,
    recipes_of,
    with_buf,
)
from tests.session.conftest import emulator as emulator
from tests.session.conftest import replicas as replicas
from tests.session.conftest import roost as roost
from tests.session.conftest import settings as settings

if TYPE_CHECKING:
    from tests.session.harness import World

SERVICE = "roost.session.v1.SessionService"


def program_of(name: str) -> str:
    """The path of a program; skips the test if it is missing."""
    # buf is one of the pinned packages.
    return str(Path(sys.executable).with_name("buf")) if name == "buf" else needs(name)


def printed() -> list[Recipe]:
    """All recipes and hints, in the order in which a reader meets them."""
    found = []
    for document in documents():
        text = document.read_text()
        found += recipes_of(text, document.name)
        found += [hint.recipe() for hint in hints_of(text, document.name)]
    return found


@pytest.mark.slow
@pytest.mark.replicas(1)
@pytest.mark.timeout(240)
async def test_every_printed_call_runs_with_grpcurl(roost: World) -> None:
    """And those that the documents print for buf."""
    recipes = printed()
    assert len(recipes) > 30, "they are found"
    await Kitchen(roost.one.running.target, program_of).cook(recipes)


@pytest.mark.slow
@pytest.mark.replicas(1)
@pytest.mark.timeout(240)
async def test_grpcurl_ghz_and_buf_find_methods_by_reflection(roost: World) -> None:
    """By the name of a method, and in version v1 alone."""
    target = roost.one.running.target
    started = await roost.one.start()
    method = f"{SERVICE}/FindLiveSession"
    data = '{"key": {"project_id": "nest", "user_id": "wren"}}'
    symbol = method.replace("/", ".")
    described = await _output([needs("grpcurl"), "-plaintext", target, "describe", symbol])
    assert "rpc FindLiveSession ( .roost.session.v1.FindLiveSessionRequest )" in described
    protocol = ["--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", "grpc-v1"]
    url = f"http://{target}/{method}"
    found = await _output([program_of("buf"), "curl", *protocol, "-d", data, url])
    assert json.loads(found)["session"]["sessionId"] == started.session.session_id
    options = ["--insecure", "--total=20", "--concurrency=2", "--format=json"]
    loaded = await _output([needs("ghz"), *options, f"--call={method}", "-d", data, target])
    assert json.loads(loaded)["statusCodeDistribution"] == {"OK": 20}


async def _output(command: list[str], seconds: float = SECONDS) -> str:
    """What a command prints that must succeed."""
    output, status = await output_of(command, seconds=seconds)
    assert status == 0, output
    return output


@pytest.mark.proof
@pytest.mark.replicas(1)
@pytest.mark.timeout(600)
async def test_every_printed_call_runs_with_buf(roost: World) -> None:
    """In the words that README and docs/agents.md say."""
    recipes = [same for recipe in printed() if (same := with_buf(recipe))]
    assert len(recipes) > 30
    await Kitchen(roost.one.running.target, program_of).cook(recipes)


TEXT = """
Before:

    grpcurl -plaintext -d '{"key": {"project_id": "a",
        "user_id": "b"}}' \\
      127.0.0.1:50051 roost.session.v1.SessionService/StartSession
    # a remark
    ghz --call=x
    echo grpcurl

```sh
$ .venv/bin/buf curl -d '{}' http://127.0.0.1:50051/roost.session.v1.SessionService/ListSessions
its output
```

| to | `StartSession` with `"mode": "START_MODE_FRESH"`, or `PinCheckpoint` `{"checkpoint_id": …}` |
"""


def test_recipes_are_found_in_blocks() -> None:
    """Over several lines, with and without a prompt."""
    recipes = recipes_of(TEXT, "x.md")
    assert [recipe.words[0] for recipe in recipes] == ["grpcurl", "ghz", ".venv/bin/buf"]
    assert json.loads(recipes[0].words[3]) == {"key": {"project_id": "a", "user_id": "b"}}
    assert [recipe.method and recipe.method.name for recipe in recipes] == [
        "StartSession",
        None,
        "ListSessions",
    ]
    same = with_buf(recipes[0])
    assert same
    assert same.words[-1] == f"http://127.0.0.1:50051/{SERVICE}/StartSession"
    with pytest.raises(RecipeFailed, match="has no end"):
        recipes_of("    grpcurl -d '{\n\nText\n", "x.md")


def test_hints_are_found_in_prose_and_tables() -> None:
    hints = hints_of(TEXT, "x.md")
    assert [hint.method.name for hint in hints] == ["StartSession", "PinCheckpoint"]
    assert json.loads(hints[0].recipe().words[3])["mode"] == "START_MODE_FRESH"
    assert json.loads(hints[1].recipe().words[3]) == {"checkpoint_id": "…"}


async def test_a_recipe_that_fails_is_told_with_its_place() -> None:
    with pytest.raises(RecipeFailed, match=r"x\.md: ghz --call=x\nended with 1"):
        await Kitchen("127.0.0.1:1", lambda _: "false").run(Recipe("x.md", "ghz --call=x"))


@pytest.mark.proof
@pytest.mark.timeout(1800)
async def test_every_printed_call_runs_under_compose() -> None:
    """Where an engine runs: the images are built, and the stack is removed afterwards."""
    docker = needs("docker")
    output, status = await output_of([docker, "info"])
    if status:
        pytest.skip(f"no engine runs: {output.strip().splitlines()[-1]}")
    compose = [docker, "compose", "--project-name", "roost-recipes"]
    try:
        await _output([*compose, "up", "--build", "--wait"], seconds=900)
        await Kitchen(ADDRESS, program_of).cook(printed())
    finally:
        await _output([*compose, "down", "--volumes"], seconds=120)
