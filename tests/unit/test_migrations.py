"""Migrations expand, then contract: what they do to a database that older replicas run on.

Each one is rendered as SQL, and every statement must be one that replicas of the version before do
not notice. What looks harmful and is not is argued for in the migration, by a line

    # argued: <the index, table or column it is about>: <why it is fine>
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic import op
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from session_service.storage.migrate import MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import SimpleNamespace

NAME = r'"?(?P<table>\w+)"?'
#: Makes things, which nobody knows yet.
NEW = re.compile(rf"CREATE (TABLE|VIEW) {NAME}")
INDEX = re.compile(
    rf"CREATE (UNIQUE )?INDEX (?P<concurrently>CONCURRENTLY )?(?P<name>\w+) ON {NAME}"
)
ADD_COLUMN = re.compile(rf"ALTER TABLE {NAME} ADD COLUMN (?P<column>\w+) (?P<rest>.*)", re.DOTALL)
#: What is checked of a row that is written, also by who does not know of it.
CONSTRAINT = re.compile(rf"ALTER TABLE {NAME} ADD CONSTRAINT (?P<name>\w+)")
#: Touches what is there, in whatever way.
TOUCH = re.compile(rf"(ALTER TABLE|INSERT INTO|UPDATE|DELETE FROM) {NAME}")
#: Says something to this connection only.
SESSION = re.compile(r"SET |BEGIN|COMMIT")
ARGUED = re.compile(r"# argued: (\w+): \w+")
#: A default that is worked out for each row rewrites the table, and nobody reads it meanwhile.
VOLATILE = re.compile(r"DEFAULT [^,]*\b(random|gen_random_uuid|clock_timestamp|nextval|uuidv7)\b")


def complaints(statements: Sequence[str], argued: frozenset[str] = frozenset()) -> list[str]:
    """What in a migration would hurt replicas of the version before, a line for each statement."""
    new: set[str] = set()
    found = []
    for statement in statements:
        problem = _problem(statement, new)
        words = set(re.findall(r"\w+", statement))
        if problem and not words & argued:
            found.append(f"{problem}: {' '.join(statement.split())[:120]}")
    return found


def _problem(statement: str, new: set[str]) -> str | None:
    """What is wrong with a statement; notes the tables that it makes in `new`."""
    if made := NEW.match(statement):
        new.add(made["table"])
        return None
    if SESSION.match(statement):
        return None
    if index := INDEX.match(statement):
        if index["table"] in new or index["concurrently"]:
            return None
        return "blocks all writes to a table while its index is built; build it CONCURRENTLY"
    if (touched := TOUCH.match(statement)) and touched["table"] in new:
        return None
    if column := ADD_COLUMN.match(statement):
        return _column_problem(column["rest"])
    if CONSTRAINT.match(statement) and "NOT VALID" not in statement:
        return "checks the whole table while nobody may use it, and refuses what old replicas write"
    return "changes what replicas of the version before may rely on"


def _column_problem(rest: str) -> str | None:
    if "NOT NULL" in rest and "DEFAULT" not in rest:
        return "refuses the rows of replicas that do not know of the column; give it a default"
    if VOLATILE.search(rest):
        return "rewrites the table while nobody may use it"
    return None


def statements_of(upgrade: Callable[[], None]) -> list[str]:
    """The SQL that a migration runs."""
    buffer = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": buffer}
    )
    with Operations.context(context):
        upgrade()
    return [text.strip() for text in buffer.getvalue().split(";\n") if text.strip()]


SCRIPTS = list(reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())))
#: The first one makes everything, and no replica ran before it.
LATER = [script for script in SCRIPTS if script.down_revision is not None]


@pytest.mark.parametrize("script", LATER, ids=lambda script: script.revision)
def test_a_migration_only_adds(script: SimpleNamespace) -> None:
    """Replicas of the version before run on, and are not held up."""
    argued = frozenset(ARGUED.findall(Path(script.path).read_text()))
    assert complaints(statements_of(script.module.upgrade), argued) == []


def test_the_migrations_are_one_line_and_their_numbers_rise() -> None:
    """By the numbers a replica tells a database that is ahead from one that is another's."""
    numbers = [script.revision for script in SCRIPTS]
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
    assert [script.down_revision for script in SCRIPTS] == [None, *numbers[:-1]]


def _text(**options: object) -> sa.Column[str]:
    return sa.Column("later", sa.Text, **options)  # type: ignore[arg-type]  # a Column's own


HARMFUL: dict[str, Callable[[], object]] = {
    "drops a column": lambda: op.drop_column("sessions", "spec"),
    "drops a table": lambda: op.drop_table("decisions"),
    "drops an index": lambda: op.drop_index("sessions_live", "sessions"),
    "renames a column": lambda: op.alter_column("sessions", "spec", new_column_name="wanted"),
    "renames a table": lambda: op.rename_table("sessions", "visits"),
    "changes a type": lambda: op.alter_column("sessions", "generation", type_=sa.Text),
    "forbids null": lambda: op.alter_column("sessions", "wish", nullable=False),
    "takes a default": lambda: op.alter_column("sessions", "epoch", server_default=None),
    "adds a required column": lambda: op.add_column("sessions", _text(nullable=False)),
    "adds a worked-out default": lambda: op.add_column(
        "sessions", _text(server_default=sa.text("gen_random_uuid()"))
    ),
    "adds a check": lambda: op.create_check_constraint("short", "sessions", "slot <> ''"),
    "adds a key": lambda: op.create_unique_constraint("once", "sessions", ["spec"]),
    "builds an index": lambda: op.create_index("by_spec", "sessions", ["spec"]),
    "rewrites rows": lambda: op.execute("UPDATE sessions SET slot = 'x'"),
    "deletes rows": lambda: op.execute("DELETE FROM decisions"),
    "locks": lambda: op.execute("LOCK TABLE sessions"),
    "does what nobody foresaw": lambda: op.execute("VACUUM FULL sessions"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_would_hurt_is_refused(name: str) -> None:
    """Each by itself."""

    def upgrade() -> None:
        HARMFUL[name]()

    assert len(complaints(statements_of(upgrade))) == 1


def test_what_adds_is_let_through() -> None:
    """Columns that can be left out, tables, and indexes on them or built concurrently."""

    def upgrade() -> None:
        op.add_column("sessions", _text())
        op.add_column("sessions", _text(nullable=False, server_default="x"))
        op.create_table("later", sa.Column("id", sa.BigInteger, nullable=False))
        op.create_index("later_id", "later", ["id"])
        op.execute("INSERT INTO later (id) VALUES (1)")
        op.create_index("by_spec", "sessions", ["spec"], postgresql_concurrently=True)

    assert complaints(statements_of(upgrade)) == []


def test_what_is_argued_for_is_let_through_and_nothing_else() -> None:
    """By the name of what it is about."""

    def upgrade() -> None:
        op.create_index("by_spec", "sessions", ["spec"])
        op.create_index("by_slot", "sessions", ["slot"])

    argued = frozenset(
        ARGUED.findall("    # argued: by_spec: nobody has rows yet\n# argued: by_slot:")
    )
    assert len(complaints(statements_of(upgrade), argued)) == 1
