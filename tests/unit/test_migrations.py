"""Migrations expand, then contract: their effect on a database that older replicas use.

Each one is rendered as SQL, and no statement may disturb replicas of the version before. A
statement that only looks harmful is explained in the migration by a line

    # argued: <its index, table or column>: <why it does no harm>
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

from session_service.storage.revision import MIGRATIONS, known

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import SimpleNamespace

NAME = r'"?(?P<table>\w+)"?'
#: Creates objects that no replica uses yet.
NEW = re.compile(rf"CREATE (TABLE|VIEW) {NAME}")
INDEX = re.compile(
    rf"CREATE (UNIQUE )?INDEX (?P<concurrently>CONCURRENTLY )?(?P<name>\w+) ON {NAME}"
)
ADD_COLUMN = re.compile(rf"ALTER TABLE {NAME} ADD COLUMN (?P<column>\w+) (?P<rest>.*)", re.DOTALL)
#: A check of every written row, also of those that older replicas write.
CONSTRAINT = re.compile(rf"ALTER TABLE {NAME} ADD CONSTRAINT (?P<name>\w+)")
#: Changes an existing object.
TOUCH = re.compile(rf"(ALTER TABLE|INSERT INTO|UPDATE|DELETE FROM) {NAME}")
#: Affects this connection only.
SESSION = re.compile(r"SET |BEGIN|COMMIT")
ARGUED = re.compile(r"# argued: (\w+): \w+")
#: A default that is computed for each row rewrites the table, which is locked meanwhile.
VOLATILE = re.compile(r"DEFAULT [^,]*\b(random|gen_random_uuid|clock_timestamp|nextval|uuidv7)\b")


def complaints(statements: Sequence[str], argued: frozenset[str] = frozenset()) -> list[str]:
    """The statements that would disturb replicas of the version before, a line each."""
    new: set[str] = set()
    found = []
    for statement in statements:
        problem = _problem(statement, new)
        words = set(re.findall(r"\w+", statement))
        if problem and not words & argued:
            found.append(f"{problem}: {' '.join(statement.split())[:120]}")
    return found


def _problem(statement: str, new: set[str]) -> str | None:
    """The problem of a statement, if any; adds the tables that it creates to `new`."""
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
        return "checks the whole table while it is locked, and rejects rows that old replicas write"
    return "changes what replicas of the version before may rely on"


def _column_problem(rest: str) -> str | None:
    if "NOT NULL" in rest and "DEFAULT" not in rest:
        return "rejects the rows of replicas that do not know of the column; give it a default"
    if VOLATILE.search(rest):
        return "rewrites the table while it is locked"
    return None


#: Migrations after this one never hold a lock for long on a table that grows, argued or not.
LAST_THAT_MAY_LOCK = "0012"
#: Statements that read or write a whole table under a lock that stops its readers or its writers.
LONG = {
    r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)": "builds an index under a lock",
    r"DROP INDEX (?!CONCURRENTLY)": "waits for all readers, and all others wait for it",
    r"REINDEX (?!.*\bCONCURRENTLY\b)": "builds an index under a lock",
    r"(WITH|UPDATE|DELETE|INSERT|MERGE|TRUNCATE|COPY)\b": "writes rows; a background pass can",
    r"(CLUSTER|VACUUM|LOCK)\b": "locks a table",
    r"ALTER TABLE .*\bADD (CONSTRAINT|PRIMARY|UNIQUE|CHECK|FOREIGN)\b"
    r"(?!.*\b(NOT VALID|USING INDEX)\b)": "checks all rows under a lock; add it NOT VALID",
    r"ALTER TABLE .*\bSET NOT NULL\b": "reads all rows under a lock",
    r"ALTER TABLE .*\bTYPE\b": "writes all rows under a lock",
    r"ALTER TABLE .*\bADD COLUMN\b.*\b(REFERENCES|GENERATED|UNIQUE|PRIMARY|CHECK)\b": "checks or"
    " writes all rows under a lock",
}
#: Nobody uses a table yet that the migration adds.
ADDED = re.compile(rf"CREATE TABLE (IF NOT EXISTS )?{NAME}")
#: What alembic itself writes.
BOOKKEEPING = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) alembic_version\b")


def long_locks(statements: Sequence[str]) -> list[str]:
    """The statements that hold a lock on a table with rows for long, a line each."""
    new = {made["table"] for statement in statements if (made := ADDED.match(statement))}
    found, patient = [], False
    for statement in statements:
        words = set(re.findall(r"\w+", statement))
        if statement.startswith("SET lock_timeout"):
            patient = True
        elif statement == "BEGIN":
            patient = False
        elif not words & new and not BOOKKEEPING.match(statement):
            problems = [why for rule, why in LONG.items() if re.match(rule, statement, re.DOTALL)]
            if "CONCURRENTLY" in statement and not patient:
                problems.append("ends after the lock_timeout of other statements: SET it to 0")
            if column := ADD_COLUMN.match(statement):
                problems += [why for why in [_column_problem(column["rest"])] if why]
            found += [f"{why}: {' '.join(statement.split())[:120]}" for why in problems]
    return found


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
#: The first migration creates everything, and no replica ran before it.
LATER = [script for script in SCRIPTS if script.down_revision is not None]


@pytest.mark.parametrize("script", LATER, ids=lambda script: script.revision)
def test_a_migration_only_adds(script: SimpleNamespace) -> None:
    """Replicas of the version before run on and do not wait."""
    argued = frozenset(ARGUED.findall(Path(script.path).read_text()))
    assert complaints(statements_of(script.module.upgrade), argued) == []


@pytest.mark.parametrize(
    "script",
    [script for script in LATER if script.revision > LAST_THAT_MAY_LOCK],
    ids=lambda script: script.revision,
)
def test_a_migration_holds_no_lock_for_long(script: SimpleNamespace) -> None:
    """No lock longer than a second on a table that grows; `# argued:` does not help."""
    assert long_locks(statements_of(script.module.upgrade)) == []


def _in_batches(statement: Callable[[], object]) -> Callable[[], None]:
    def upgrade() -> None:
        op.execute("SET lock_timeout = 0")
        statement()

    return upgrade


LOCKING: dict[str, Callable[[], object]] = {
    "builds an index": lambda: op.create_index("by_spec", "sessions", ["spec"]),
    "builds a unique index": lambda: op.create_index("by", "sessions", ["spec"], unique=True),
    "drops an index": lambda: op.drop_index("sessions_live", "sessions"),
    "builds an index again": lambda: op.execute("REINDEX INDEX sessions_live_key"),
    "updates": lambda: op.execute("UPDATE sessions SET slot = 'x'"),
    "updates by a CTE": lambda: op.execute("WITH a AS (SELECT 1) UPDATE sessions SET slot = 'x'"),
    "deletes": lambda: op.execute("DELETE FROM decisions"),
    "copies": lambda: op.execute("INSERT INTO sessions SELECT * FROM sessions"),
    "locks": lambda: op.execute("LOCK TABLE sessions"),
    "vacuums": lambda: op.execute("VACUUM FULL sessions"),
    "adds a check": lambda: op.create_check_constraint("short", "sessions", "slot <> ''"),
    "adds a key": lambda: op.create_unique_constraint("once", "sessions", ["spec"]),
    "adds a foreign key": lambda: op.create_foreign_key("f", "a", "b", ["c"], ["d"]),
    "forbids null": lambda: op.alter_column("sessions", "wish", nullable=False),
    "changes a type": lambda: op.alter_column("sessions", "generation", type_=sa.Text),
    "adds a worked-out default": lambda: op.add_column(
        "sessions", _text(server_default=sa.text("gen_random_uuid()"))
    ),
    "adds a stored column": lambda: op.execute(
        "ALTER TABLE sessions ADD COLUMN l text GENERATED ALWAYS AS (slot) STORED"
    ),
}


@pytest.mark.parametrize("name", LOCKING)
def test_a_long_lock_is_reported(name: str) -> None:
    """Each statement alone is reported."""
    assert len(long_locks(statements_of(_in_batches(LOCKING[name])))) == 1


def test_an_index_is_built_with_patience() -> None:
    """CONCURRENTLY waits for transactions that are older: `lock_timeout` would end it."""

    def upgrade() -> None:
        op.create_index("by_spec", "sessions", ["spec"], postgresql_concurrently=True)

    assert len(long_locks(statements_of(upgrade))) == 1
    assert long_locks(statements_of(_in_batches(upgrade))) == []


def test_short_locks_are_allowed() -> None:
    """New tables with rows and indexes, columns with a constant, checks that are not validated."""

    def upgrade() -> None:
        op.create_table("later", sa.Column("id", sa.BigInteger, nullable=False))
        op.create_index("later_id", "later", ["id"])
        op.execute("INSERT INTO later (id) VALUES (1)")
        op.add_column("sessions", _text(nullable=False, server_default="x"))
        op.execute("ALTER TABLE sessions ADD CONSTRAINT c CHECK (slot <> '') NOT VALID")
        op.execute("ALTER TABLE llm_search ALTER COLUMN document SET STATISTICS 1000")

    assert long_locks(statements_of(upgrade)) == []


def test_the_migrations_are_one_line_with_rising_numbers() -> None:
    """A replica tells a newer database from a foreign one by the numbers."""
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
    "runs an unknown statement": lambda: op.execute("VACUUM FULL sessions"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_change_is_reported(name: str) -> None:
    """Each change alone is reported."""

    def upgrade() -> None:
        HARMFUL[name]()

    assert len(complaints(statements_of(upgrade))) == 1


def test_the_files_of_the_migrations_name_their_revisions() -> None:
    """A replica learns the newest revision from the names, without Alembic."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert known() == sorted(revisions)
    assert known()[-1] == scripts.get_current_head()


def test_an_added_object_is_allowed() -> None:
    """Nullable or defaulted columns, tables, and indexes on new tables or built concurrently."""

    def upgrade() -> None:
        op.add_column("sessions", _text())
        op.add_column("sessions", _text(nullable=False, server_default="x"))
        op.create_table("later", sa.Column("id", sa.BigInteger, nullable=False))
        op.create_index("later_id", "later", ["id"])
        op.execute("INSERT INTO later (id) VALUES (1)")
        op.create_index("by_spec", "sessions", ["spec"], postgresql_concurrently=True)

    assert complaints(statements_of(upgrade)) == []


def test_only_an_argued_statement_is_allowed() -> None:
    """The line names the object of the statement."""

    def upgrade() -> None:
        op.create_index("by_spec", "sessions", ["spec"])
        op.create_index("by_slot", "sessions", ["slot"])

    argued = frozenset(
        ARGUED.findall("    # argued: by_spec: no table has rows yet\n# argued: by_slot:")
    )
    assert len(complaints(statements_of(upgrade), argued)) == 1
