"""Alembic's entry: runs the migrations on the connection that `migrate.upgrade` hands over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic import context

from session_service.storage.agent import tables
from session_service.storage.migrate import limit_locks

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from alembic.runtime.migration import MigrationContext, MigrationInfo


def _limit_locks(
    ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]
) -> None:
    """After each migration: the next one has the limit again. Any: as Alembic has it."""
    assert ctx.connection is not None
    limit_locks(ctx.connection)


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    transaction_per_migration=True,
    on_version_apply=_limit_locks,
)
with context.begin_transaction():
    context.run_migrations()
