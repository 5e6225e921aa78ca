"""List the skipped tests by reason, from pytest's JUnit report: python -m tools.skipped FILE."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path


def skipped(report: Path) -> dict[str, list[str]]:
    """The skipped tests by reason. Expected failures are not among them."""
    found: dict[str, list[str]] = defaultdict(list)
    for case in ET.parse(report).iter("testcase"):
        for skip in case.iterfind("skipped"):
            if skip.get("type") == "pytest.skip":
                name = f"{case.get('classname', '')}.{case.get('name')}".strip(".")
                found[skip.get("message", "no reason")].append(name)
    return dict(found)


def text(found: dict[str, list[str]]) -> str:
    """A paragraph for each reason, with its tests."""
    count = sum(map(len, found.values()))
    lines = [f"Skipped tests: {count}"]
    for reason, names in sorted(found.items()):
        lines += [f"  {reason}", *(f"    {name}" for name in sorted(names))]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Print the list; status 1 without a report."""
    report = Path(argv[0])
    if not report.exists():
        print(f"Skipped: unknown, there is no {report}. No test ran.")
        return 1
    print(text(skipped(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
