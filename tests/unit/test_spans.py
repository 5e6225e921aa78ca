"""Durations in settings: at most what a timestamp can represent, and rejected by their name."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from session_service.config import Config, ConfigError
from session_service.config.variables import VARIABLES
from tests.cases import each

URL = {"ROOST_DATABASE_URL": "postgresql://roost@127.0.0.1/roost"}
TEN_YEARS = timedelta(days=3660)
_DEFAULTS = Config(database_url="")
SPANS = [
    variable.name
    for variable in VARIABLES
    if isinstance(getattr(_DEFAULTS, variable.field), timedelta)
]


def test_the_durations_to_check_are_found() -> None:
    assert {"ROOST_IDLE_TIMEOUT", "ROOST_CHECKPOINT_EVERY"} <= set(SPANS)


@each("name", SPANS)
@each("seconds", ["3162240001", "1e18", "inf", "nan", "-1", "a day"])
def test_an_invalid_duration_is_rejected_by_its_name(name: str, seconds: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Config.from_env({**URL, name: seconds})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", timedelta(0)),
        ("0.0", timedelta(0)),
        ("1", timedelta(seconds=1)),
        ("316224000", TEN_YEARS),
    ],
)
def test_the_interval_of_checkpoints_may_be_never(text: str, expected: timedelta) -> None:
    assert Config.from_env({**URL, "ROOST_CHECKPOINT_EVERY": text}).checkpoint_every == expected


def test_the_interval_of_checkpoints_is_a_second_at_least() -> None:
    with pytest.raises(ConfigError, match=r"ROOST_CHECKPOINT_EVERY.*or 0 for never"):
        Config.from_env({**URL, "ROOST_CHECKPOINT_EVERY": "0.5"})


def test_the_documentation_lists_every_variable() -> None:
    """It lists none that the service does not read."""
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    listed = set(re.findall(r"^\| `([A-Z_]+)` \| (?:session|both) \|", text, re.MULTILINE))
    assert listed == {variable.name for variable in VARIABLES}
