"""The alerts of docs/production.md name metrics that a replica exports, with their labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from session_service import errors
from session_service.metrics.prometheus import LOOPS
from session_service.rpc.interceptors import UNEXPECTED
from tests.container.harness import failing
from tests.session.harness import world
from tests.session.test_metrics import scrape

if TYPE_CHECKING:
    from local.fly.emulator import Emulator

TEXT = (Path(__file__).parents[2] / "docs" / "production.md").read_text()
ALERTS = TEXT.partition("\n## Alerts\n")[2].partition("\n## ")[0]
#: The second column. In a table a bar is written as `\|`.
EXPRESSIONS = [
    expression.replace("\\|", "|")
    for expression in re.findall(r"^\| [^|`]+ \| `((?:\\\||[^|`])+)` \|", ALERTS, re.MULTILINE)
]
SELECTOR = re.compile(r"\b(roost_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)=~?"([^"]*)"')
REASONS = {UNEXPECTED} | {
    each.reason
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, errors.RoostError)
}


def test_each_row_has_an_expression() -> None:
    assert len(EXPRESSIONS) == ALERTS.count("\n| ") - 2 > 10
    for expression in EXPRESSIONS:
        assert SELECTOR.search(expression), expression
        assert re.search(r" (?:==|>|<) [\d.]+$", expression), expression
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), expression


def test_every_background_loop_has_a_series_for_its_late_passes() -> None:
    folder = Path(__file__).parents[2] / "session_service" / "server"
    names = [
        name
        for file in folder.glob("*.py")
        for name in re.findall(r'running\(\s*"([a-z-]+)"', file.read_text())
    ]
    assert sorted(names) == sorted(LOOPS)


async def test_each_metric_and_label_is_exported(emulator: Emulator, database_url: str) -> None:
    """By a replica that has refused one call, and done nothing else."""
    async with world(emulator, database_url, replicas=1, metrics_listen="127.0.0.1:0") as roost:
        await failing(roost.one.start(""))
        families = await scrape(roost.one)
    exported = [sample for family in families for sample in family.samples]
    for expression in EXPRESSIONS:
        by = re.findall(r"\bby \((\w+)\)", expression)
        for name, matchers in SELECTOR.findall(expression):
            samples = [sample for sample in exported if sample.name == name]
            assert samples, name
            for label, values in [*MATCHER.findall(matchers), *((each, "") for each in by)]:
                found = {sample.labels.get(label) for sample in samples}
                assert None not in found, (name, label)
                known = REASONS if label == "reason" else found
                assert set(values.split("|")) <= known | {""}, (name, label)
