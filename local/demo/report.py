"""The demo's output: each call with its answer, duration and result, and the final table."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

CALL, ANSWER = 39, 49


@dataclass
class Report:
    """Prints rows as they happen, and counts the values that were checked and wrong."""

    out: TextIO
    rows: int = 0
    checked: int = 0
    wrong: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print a line of text."""
        print(text, file=self.out, flush=True)

    def row(
        self,
        call: str,
        answer: str,
        milliseconds: float,
        checks: Mapping[str, tuple[object, object]],
    ) -> None:
        """Print one call and its answer; `checks` maps a value's name to (expected, actual)."""
        self.rows += 1
        self.checked += len(checks)
        wrong = {name: pair for name, pair in checks.items() if pair[0] != pair[1]}
        mark = "WRONG" if wrong else "ok"
        columns = f"{call:{CALL}}  {answer:{ANSWER}} {milliseconds:6.0f} ms  {mark}"
        self.say(f"{self.rows:3}  {columns}")
        for name, (expected, came) in wrong.items():
            self.wrong.append(f"{self.rows}  {call}: {name}: expected {expected}, got {came}")
            self.say(f"     {name}: expected {expected}, got {came}")

    def summarise(self) -> None:
        """Print how many values were as expected, and list those that were not."""
        self.say("")
        if not self.wrong:
            self.say(f"All {self.checked} values were as expected, and no process is left.")
            return
        self.say(f"{len(self.wrong)} of {self.checked} values were not as expected:")
        for text in self.wrong:
            self.say(f"  {text}")


@dataclass(frozen=True)
class Line:
    """One line of the policy table: the actual results of a stop and a start."""

    policy: str
    stopped: str
    started: str
    counter: str


HEADER = Line("policy", "after StopSession", "answer of StartSession", "counter")


def table(lines: list[Line]) -> list[str]:
    """The header and the lines as text; each column is as wide as its widest cell."""
    cells = [astuple(line) for line in (HEADER, *lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = [_joined(row, widths) for row in cells]
    return [rows[0], "-+-".join("-" * width for width in widths), *rows[1:]]


def _joined(row: tuple[str, ...], widths: list[int]) -> str:
    padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
    return " | ".join(padded).rstrip()
