"""The failpoint "intent" of every call that commits an intent, where a replica can be killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from session_service import failpoints
from tests.session.saving import client, counting

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)


async def _undelete(roost: World, session_id: str) -> Awaitable[object]:
    await roost.one.end(session_id)
    return roost.one.undelete(session_id)


async def _checkpoint(roost: World, session_id: str) -> Awaitable[object]:
    return client(roost.one).create(session_id)


async def _pause(roost: World, session_id: str) -> Awaitable[object]:
    return roost.one.pause(session_id)


async def _end(roost: World, session_id: str) -> Awaitable[object]:
    return roost.one.end(session_id)


async def _start(roost: World, session_id: str) -> Awaitable[object]:
    return roost.one.start("robin")


@pytest.mark.parametrize(
    "prepare",
    [
        _undelete,
        _checkpoint,
        _pause,
        _end,
        _start,
    ],
)
async def test_a_call_passes_the_failpoint_of_its_intent(
    roost: World, monkeypatch: pytest.MonkeyPatch, prepare: Any
) -> None:
    """It is passed once. Any: one of the functions above."""
    session_id = (await counting(roost, 1)).session_id
    call = await prepare(roost, session_id)
    passed = []
    around = failpoints.around

    async def noted(place: str, work: Awaitable[object]) -> object:
        passed.append(place)
        return await around(place, work)

    monkeypatch.setattr(failpoints, "around", noted)
    await call
    assert passed.count("intent") == 1
