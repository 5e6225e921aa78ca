"""The SQL of CONTRIBUTING.md runs against the tables as they are."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import uuid4

import psycopg

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


async def test_the_queries_about_a_stuck_transition_run(database_url: str) -> None:
    blocks = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
    statements = [each for block in blocks for each in block.split(";") if each.strip()]
    assert len(statements) == 5
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        for statement in statements:
            await connection.execute(statement.replace("01a2…", str(uuid4())).encode())
