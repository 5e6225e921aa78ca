"""A step of the seed: one SQL statement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One statement, and how it is run. Its binds are `count`, `seed`, `policy`, `language`."""

    name: str
    sql: str
    rebuilt: str = ""
    """The table whose indexes are dropped before the statement and built after it, which is faster
    than an entry for each row."""
    unchecked: bool = False
    """Whether the statement runs without triggers. They are the foreign keys', which would look up
    each row's parent; the statement takes the rows from the parents."""
