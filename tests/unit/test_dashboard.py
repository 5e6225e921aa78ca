"""The Grafana dashboard shows the five statistics, from metrics that a replica exports."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from session_service.cli import stats as command
from session_service.metrics.prometheus import Metrics
from session_service.stats import table
from tests.unit.test_figures import figures

ROOT = Path(__file__).parents[2]
#: A panel, with fields of every type.
Panel = dict[str, Any]
PANELS: list[Panel] = json.loads((ROOT / command.DASHBOARD).read_text())["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
#: A metric's name, and its matchers.
SELECTOR = re.compile(r"(?P<name>\broost_\w+)(?:\{(?P<matchers>[^}]*)\})?\[\$window\]")
MATCHER = re.compile(r'(?P<label>\w+)(?:=~|!~|!=|=)"(?P<values>[^"]*)"')
BY = re.compile(r"\bby \((?P<labels>[^)]*)\)")
#: What may be left of an expression without its selectors and `by` clauses.
ARITHMETIC = re.compile(r"(?:sum|increase|rate|3600|[()/* ])*")


@pytest.fixture(scope="module")
def exported() -> dict[str, dict[str, set[str]]]:
    """The values of each label of each sample that a replica exports, by the sample's name."""
    text, _ = asyncio.run(Metrics().render(""))
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found[sample.name][label].add(value)
    return found


def test_the_panels_are_the_five_statistics() -> None:
    """Under their names in the table of `stats`, in the same order."""
    _, shown, *_ = table.text(figures()).split("\n\n")
    names = [re.split(r" {2,}", line)[0] for line in shown.splitlines()]
    assert len(names) == 5
    assert [panel["title"].lower() for panel in PANELS] == names
    assert all(panel["description"] and panel["targets"] for panel in PANELS)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_is_exported(
    expression: str, exported: dict[str, dict[str, set[str]]]
) -> None:
    """A replica that has done nothing yet exports every name, label and label value."""
    selectors = list(SELECTOR.finditer(expression))
    assert selectors
    for selector in selectors:
        labels = exported[selector["name"]]
        assert labels, selector["name"]
        matchers = selector["matchers"] or ""
        for matcher in MATCHER.finditer(matchers):
            assert set(matcher["values"].split("|")) <= labels[matcher["label"]], matcher[0]
        assert re.fullmatch(r",*", MATCHER.sub("", matchers))
        for by in BY.finditer(expression):
            assert set(by["labels"].split(", ")) <= set(labels)
    assert ARITHMETIC.fullmatch(BY.sub("", SELECTOR.sub("", expression)))
