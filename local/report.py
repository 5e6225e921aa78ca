"""The demo's lines: what was called, what came, how long it took, and whether it was as told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

CALL, ANSWER = 38, 49


@dataclass
class Report:
    """Writes rows as things happen, and keeps count of what was expected and what came."""

    out: TextIO
    rows: int = 0
    checked: int = 0
    wrong: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line of prose."""
        print(text, file=self.out, flush=True)

    def row(
        self,
        call: str,
        answer: str,
        milliseconds: float,
        told: Mapping[str, tuple[object, object]],
    ) -> None:
        """One call: its answer as it came; `told` maps a value's name to (expected, come)."""
        self.rows += 1
        self.checked += len(told)
        amiss = {name: pair for name, pair in told.items() if pair[0] != pair[1]}
        mark = "WRONG" if amiss else "ok"
        columns = f"{call:{CALL}}  {answer:{ANSWER}} {milliseconds:6.0f} ms  {mark}"
        self.say(f"{self.rows:3}  {columns}")
        for name, (expected, came) in amiss.items():
            self.wrong.append(f"{self.rows}  {call}: {name}: expected {expected}, got {came}")
            self.say(f"     {name}: expected {expected}, got {came}")

    def summarise(self) -> None:
        """The last lines: how many values were as told, and which were not."""
        self.say("")
        if not self.wrong:
            self.say(f"All {self.checked} values were as told, and no process is left.")
            return
        self.say(f"{len(self.wrong)} of {self.checked} values were not as told:")
        for text in self.wrong:
            self.say(f"  {text}")
