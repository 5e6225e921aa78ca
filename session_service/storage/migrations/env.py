"""Alembic's entry: runs the migrations on the connection that `migrate.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from session_service.storage import agent_tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=agent_tables.metadata,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
