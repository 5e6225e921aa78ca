"""Faults that a file sets at start-up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from local.fly.emulator import serve
from local.fly.faults import KINDS, Faults
from local.fly.settings import SettingError, Settings
from tests.local.fly.api_client import ApiClient, App


async def test_a_scenario_is_there_from_the_first_request(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "scenario.json"
    match = {"action": "create"}
    path.write_text(
        json.dumps(
            [
                {"kind": "rate_limited", "match": match},
                {"kind": "capacity", "match": match, "times": 2},
                {"kind": "answer_lost", "match": match, "probability": 0.5, "seed": 3, "times": 9},
            ]
        )
    )
    async with (
        serve(replace(settings, scenario=str(path))) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        app = App(client, "birds")
        for status in (429, 422, 422):
            await app.create(status)
        replies = [
            await client.send("POST", app.machines, {"config": {"image": "x"}}) for _ in range(9)
        ]
        assert {reply.status_code for reply in replies} == {200, 408}


@pytest.mark.parametrize("text", [None, "{", "{}", "[1]", '[{"kind": "nonsense"}]'])
async def test_a_scenario_that_cannot_be_used_is_one_line(
    settings: Settings, tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "scenario.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingError, match="scenario"):
        async with serve(replace(settings, scenario=str(path))):
            pass


def test_the_documented_example_is_one() -> None:
    text = (Path(__file__).parents[3] / "docs" / "emulator.md").read_text()
    example = text.partition("```json\n")[2].partition("```")[0]
    for fault in json.loads(example):
        assert Faults().add(fault).kind in KINDS
    assert all(f"`{kind}`" in text for kind in KINDS)
