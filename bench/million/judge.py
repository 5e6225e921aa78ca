"""Runs every statement of the list on a seeded database, and judges the pages that it touches.

Each case is run in a transaction that is rolled back, under the settings of the service, by the
plan that the service would get: one made for the values and, if PostgreSQL would choose it after
some executions, the generic one. The worse of them counts. What a trigger reads is not in a plan,
and is not counted.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from bench.million.explain import Cost, Prepared, binds
from bench.million.statements import Limit, Lookup, text_of
from session_service.storage.database import BoundedConnection, configure, parameters

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping

    from bench.million.statements import Case, Form, Listed
    from session_service.storage.database import Connection

#: The table that a statement changes.
_CHANGES = re.compile(r"\s*(?:UPDATE|INSERT INTO|DELETE FROM) (\w+)")
#: The cost of a statement that failed.
NOTHING = Cost(0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a case cost by its worst plan, or how it failed."""

    place: str
    form: str
    case: str
    limit: Limit
    cost: Cost = NOTHING
    plan: str = ""
    error: str = ""

    @property
    def per_row(self) -> float:
        """Pages for each row, of which there is at least one."""
        return self.cost.pages / max(self.cost.rows, 1)

    @property
    def excess(self) -> float:
        """The pages as a multiple of those that are allowed; an error is worse than any number."""
        return float("inf") if self.error else self.cost.pages / self.limit.allowed(self.cost.rows)

    @property
    def passes(self) -> bool:
        """Whether the limit holds."""
        return self.excess <= 1


class Judge:
    """Judges statements on one connection to a seeded database. Any: columns of every type."""

    def __init__(self, connection: BoundedConnection, vacuuming: Connection, count: int) -> None:
        """`vacuuming` is another connection, without time limits. `count` is the number of sessions
        that the database was seeded with.
        """
        self._connection = connection
        self._vacuuming = vacuuming
        self._count = count
        self._found: dict[str, object] = {}

    async def judge(self, listed: Listed) -> list[Verdict]:
        """All cases of a place."""
        return [verdict for form in listed.forms for verdict in await self._form(listed, form)]

    async def _form(self, listed: Listed, form: Form) -> list[Verdict]:
        text = text_of(listed, form)
        generic, verdicts = False, []
        for case in form.cases:
            given = {**text.constants, **listed.defaults, **form.values, **case.values}
            limit = case.limit or form.limit
            try:
                values = {name: await self._value(given[name]) for name in binds(text.sql)}
                # The service executes the form with other values too: the usual ones come first.
                if form.prepared and not generic:
                    generic = await self._becomes_generic(form, case, text.sql, values)
                plan, cost = await self._worse(form, case, text.sql, values, generic=generic)
            except psycopg.Error as error:
                found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                verdicts.append(Verdict(listed.place, form.name, case.name, limit, error=found))
            else:
                verdicts.append(Verdict(listed.place, form.name, case.name, limit, cost, plan))
        return verdicts

    async def _becomes_generic(
        self, form: Form, case: Case, sql: str, values: Mapping[str, object]
    ) -> bool:
        async with self._prepared(form, case, sql, values, "auto") as prepared:
            return await prepared.becomes_generic()

    async def _execute(
        self, form: Form, case: Case, sql: str, values: Mapping[str, object], plan: str
    ) -> Cost:
        async with self._prepared(form, case, sql, values, f"force_{plan}_plan") as prepared:
            return await prepared.analyze()

    async def _worse(
        self, form: Form, case: Case, sql: str, values: Mapping[str, object], *, generic: bool
    ) -> tuple[str, Cost]:
        """The plan that touches more pages; or the first that touches too many."""
        found: list[tuple[str, Cost]] = []
        limit = case.limit or form.limit
        for plan in ("custom", "generic") if generic else ("custom",):
            cost = await self._execute(form, case, sql, values, plan)
            if cost.pages > limit.allowed(cost.rows) and cost.quick:
                # The first execution of a kind also reads catalogs, and sets hint bits.
                again = await self._execute(form, case, sql, values, plan)
                cost = min(cost, again, key=lambda each: each.pages)
            found.append((plan, cost))
            if cost.pages > limit.allowed(cost.rows):
                break
        return max(found, key=lambda each: each[1].pages)

    @asynccontextmanager
    async def _prepared(
        self, form: Form, case: Case, sql: str, values: Mapping[str, object], mode: str
    ) -> AsyncGenerator[Prepared, None]:
        """The statement, prepared in a transaction that is rolled back."""
        prepared = Prepared(self._connection, sql, values)
        try:
            async with self._connection.transaction(force_rollback=True):
                for command in case.before:
                    await self._connection.execute(command.encode(), {"count": self._count})
                for setting in (f"SET LOCAL plan_cache_mode = {mode}", *form.settings):
                    await self._connection.execute(setting.encode())
                await prepared.prepare()
                yield prepared
        finally:
            # What is prepared outlives the transaction, and so do dead rows: the next execution
            # would read them.
            await self._connection.execute("DEALLOCATE ALL")
            for table in _changed(case.before):
                await self._vacuuming.execute(f"VACUUM (INDEX_CLEANUP ON) {table}".encode())

    async def _value(self, value: object) -> object:
        if not isinstance(value, Lookup):
            return value
        if value.sql not in self._found:
            cursor = await self._connection.execute(value.sql.encode(), {"count": self._count})
            row: tuple[Any, ...] | None = await cursor.fetchone()
            self._found[value.sql] = row[0] if row else None
        found = self._found[value.sql]
        return found if value.made is None else value.made(found)


def _changed(statements: Iterable[str]) -> list[str]:
    """The tables that these statements change."""
    found = [_CHANGES.match(each) for each in statements]
    return sorted({match[1] for match in found if match})


async def judge(url: str, count: int, listed: Iterable[Listed]) -> list[Verdict]:
    """Judge the list on the database; afterwards it is vacuumed, and as it was."""
    # Cases that change rows first leave dead ones behind: they come last.
    ordered = sorted(listed, key=lambda each: any(c.before for f in each.forms for c in f.cases))
    verdicts = []
    async with (
        await BoundedConnection.connect(url, **parameters(url)) as connection,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as vacuuming,
    ):
        await configure(connection)
        # The server ends a statement that takes too long, as it does for the service.
        connection.limit = None
        judge = Judge(connection, vacuuming, count)
        for each in ordered:
            verdicts += await judge.judge(each)
        await vacuuming.execute("VACUUM")
    return verdicts


def report(verdicts: Iterable[Verdict], *, every: bool = False) -> int:
    """Print the worst case of each statement, and all that exceed their limits; the number of
    these. With `every`, print all cases.
    """
    found = list(verdicts)
    worst: dict[tuple[str, str], Verdict] = {}
    for verdict in found:
        key = (verdict.place, verdict.form)
        if key not in worst or verdict.excess > worst[key].excess:
            worst[key] = verdict
    shown = found if every else list(worst.values())
    print(f"{'pages':>8}{'rows':>7}{'a row':>9}{'limit':>8}{'ms':>9}  plan     statement: case")
    for verdict in sorted(shown, key=lambda each: (each.place, each.form)):
        print(_line(verdict))
    failed = [verdict for verdict in found if not verdict.passes]
    print(
        f"{len(found)} cases of {len(worst)} statements; {len(failed)} cases of "
        f"{len({(each.place, each.form) for each in failed})} statements exceed their limits"
    )
    for verdict in sorted(failed, key=lambda each: -each.excess):
        print(_line(verdict))
    return len(failed)


def _line(verdict: Verdict) -> str:
    cost, limit = verdict.cost, verdict.limit
    named = f"{verdict.place} {verdict.form}".strip() + f": {verdict.case}"
    if verdict.error:
        return f"{'':41}  {'FAILED':8} {named}: {verdict.error}"
    mark = "" if verdict.passes else "  EXCEEDS ITS LIMIT"
    return (
        f"{cost.pages:8}{cost.rows:7}{verdict.per_row:9.1f}{limit.allowed(cost.rows):8.0f}{cost.milliseconds:9.1f}"
        f"  {verdict.plan:8} {named}{mark}"
    )
