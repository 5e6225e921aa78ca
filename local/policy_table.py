"""The table at the demo's end: what a stop and a start meant under each policy."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Line:
    """One start under a policy, all of it as it came."""

    policy: str
    stop_meant: str
    start_said: str
    counter: str


HEAD = Line("policy", "stop meant", "start said", "counter")


def table(lines: list[Line]) -> list[str]:
    """The lines below their head, each column as wide as its widest text."""
    cells = [astuple(line) for line in (HEAD, *lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = [_joined(row, widths) for row in cells]
    return [rows[0], "-+-".join("-" * width for width in widths), *rows[1:]]


def _joined(row: tuple[str, ...], widths: list[int]) -> str:
    padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
    return " | ".join(padded).rstrip()
