"""What a picture in SVG is drawn with: panels, axes, lines with gaps, a legend.

Colours are classes, with a palette for light and one for dark; where the reader of the file knows
of neither, it is dark on white. Series differ in their marks as well as in colour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

WIDTH = 860
LEFT, RIGHT = 70, 24
#: Colours of Okabe and Ito, which the colour-blind tell apart; lighter ones on dark.
PALETTE = (("#0072b2", "#56b4e9"), ("#b86e00", "#e69f00"), ("#00795a", "#2fc79b"),
           ("#b34a00", "#ff8a4a"), ("#8f4877", "#dd9cc6"))  # fmt: skip
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.head { font-size: 16px; font-weight: 600; }
.title { font-weight: 600; }
.note { fill: #57606a; stroke: #ffffff; stroke-width: 6; paint-order: stroke; }
.small { fill: #57606a; }
.paper { fill: #ffffff; }
.grid { stroke: #d8dee4; stroke-width: 1; }
.axis { stroke: #57606a; stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.faint { stroke-dasharray: 4 3; stroke-width: 1.3; }
"""
DARK = """
text { fill: #e6edf3; }
.small { fill: #9da7b1; }
.note { fill: #9da7b1; stroke: #0d1117; }
.paper { fill: #0d1117; }
.grid { stroke: #30363d; }
.axis { stroke: #9da7b1; }
"""
#: With more places than this only those between gaps are marked.
MARKED = 92
#: Marks around 0,0.
MARKS = (
    '<circle r="3.2"/>',
    '<rect x="-3" y="-3" width="6" height="6"/>',
    '<path d="M0-4L3.8 3H-3.8Z"/>',
    '<path d="M0-4.2L4.2 0L0 4.2L-4.2 0Z"/>',
    '<path d="M0 4L3.8-3H-3.8Z"/>',
)


def printable(text: str) -> str:
    """Text as XML may have it: markup escaped, what XML has no place for left out."""
    return escape("".join(letter for letter in text if letter.isprintable()), {'"': "&quot;"})


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what is written there."""

    at: float
    label: str


@dataclass(frozen=True)
class Series:
    """Values over places; where one is None there is a gap."""

    name: str
    colour: int
    values: Sequence[float | None]
    faint: bool = False
    """A companion of another series: dashed, without marks, not in the legend."""


@dataclass(frozen=True)
class Panel:
    """One set of axes, with what is drawn between them. Places on x are 0, 1, 2 …"""

    title: str
    top: float
    height: float
    places: int
    scale: Callable[[float], float]
    """Where a value lies between the bottom (0) and the top (1)."""
    y_ticks: Sequence[Tick]
    x_ticks: Sequence[Tick]
    series: Sequence[Series] = field(default_factory=list)
    note: str = ""
    """What is said where nothing is drawn."""

    def draw(self) -> Iterator[str]:
        """The elements."""
        yield text(LEFT, self.top - 12, self.title, "title")
        for tick in self.y_ticks:
            y = self._y(tick.at)
            yield line(LEFT, y, WIDTH - RIGHT, y, "grid")
            yield text(LEFT - 8, y + 4, tick.label, "small", "end")
        for tick in self.x_ticks:
            x = self._x(tick.at)
            yield line(x, self._bottom, x, self._bottom + 4, "axis")
            yield text(x, self._bottom + 18, tick.label, "small", "middle")
        yield line(LEFT, self._bottom, WIDTH - RIGHT, self._bottom, "axis")
        if self.note:
            yield text(WIDTH / 2, self.top + self.height / 2, self.note, "note", "middle")
        for series in self.series:
            yield from self._series(series)

    @property
    def _bottom(self) -> float:
        return self.top + self.height

    def _x(self, place: float) -> float:
        """The middle of a place: each has as much room as the others."""
        return LEFT + (place + 0.5) * (WIDTH - LEFT - RIGHT) / self.places

    def _y(self, value: float) -> float:
        return self._bottom - self.scale(value) * self.height

    def _series(self, series: Series) -> Iterator[str]:
        kind = f"line s{series.colour}{' faint' if series.faint else ''}"
        for run in _runs(series.values):
            points = [(self._x(place), self._y(value)) for place, value in run]
            if len(points) > 1:
                joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                yield f'<polyline class="{kind}" points="{joined}"/>'
            elif series.faint:
                # A place between two gaps: there is nothing to draw a line to.
                x, y = points[0]
                yield line(x - 5, y, x + 5, y, kind.removesuffix(" faint"))
            if not series.faint and (self.places <= MARKED or len(points) == 1):
                yield from (mark(series.colour, x, y) for x, y in points)


def _runs(values: Sequence[float | None]) -> Iterator[list[tuple[int, float]]]:
    """Neighbours that all have values."""
    run: list[tuple[int, float]] = []
    for place, value in enumerate([*values, None]):
        if value is not None:
            run.append((place, value))
        elif run:
            yield run
            run = []


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    """A line of text."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{printable(words)}</text>'


def mark(colour: int, x: float, y: float) -> str:
    """A series' mark."""
    shape = MARKS[colour % len(MARKS)]
    return f'<g class="m{colour}" transform="translate({x:.1f} {y:.1f})">{shape}</g>'


def legend(y: float, names: Iterable[tuple[int, str]], more: str) -> Iterator[str]:
    """The series' names beside their marks, in a row; below it what else is to be said of them."""
    x = float(LEFT)
    for colour, name in names:
        yield f'<line class="line s{colour}" x1="{x}" y1="{y - 4}" x2="{x + 22}" y2="{y - 4}"/>'
        yield mark(colour, x + 11, y - 4)
        yield text(x + 28, y, name, "small")
        x += 52 + 8.4 * len(name)
    yield text(LEFT, y + 20, more, "small")


def picture(height: float, title: str, description: str, elements: Iterable[str]) -> str:
    """The whole file."""
    light = "".join(_series_style(n, colours[0]) for n, colours in enumerate(PALETTE))
    dark = "".join(_series_style(n, colours[1]) for n, colours in enumerate(PALETTE))
    style = f"{STYLE}{light}@media (prefers-color-scheme: dark) {{{DARK}{dark}}}"
    box = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    body = "\n".join(elements)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">\n'
        f"<title>{printable(title)}</title>\n<desc>{printable(description)}</desc>\n"
        f"<style>{style}</style>\n"
        f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>\n{body}\n</svg>\n'
    )


def _series_style(number: int, colour: str) -> str:
    return f".s{number} {{ stroke: {colour}; }} .m{number} {{ fill: {colour}; }}\n"
