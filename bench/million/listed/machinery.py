"""Places that send what other places make, or that read no table; nothing is run for them."""

from __future__ import annotations

from bench.million.statements import not_run

_SENDS = "sends a statement that another place makes"

LISTED = (
    not_run("reconcile.inventory:InventoryPass.sweep", "streams containers, not rows"),
    not_run("server.health:_WRITABLE", "reads a setting and no table"),
    not_run("storage.agent.appends:analyze", "ANALYZE reads a sample of fixed size, after imports"),
    not_run("storage.agent.appends:append_imported", _SENDS),
    not_run("storage.agent.changes:Changes._send", "notifies, and reads no table"),
    not_run(
        "storage.agent.search:_index_batch",
        "TRUNCATE, once, when an operator changes the language of the index",
    ),
    not_run("storage.agent.search:_NEXT_TRANSACTION", "reads a snapshot and no table"),
    not_run("storage.agent.search:_OLDEST_OPEN", "reads a snapshot and no table"),
    not_run("storage.checkpoint.write:get", _SENDS),
    not_run("storage.database:Database.fetch_all", _SENDS),
    not_run("storage.listening:_payloads", "SELECT 1, on a connection that listens"),
    not_run("storage.database:compiled", "makes the statements that other places define"),
    not_run("storage.database:configure", "settings of a new connection"),
    not_run("storage.listening:listening", "LISTEN"),
    not_run("storage.database:one", _SENDS),
    not_run("storage.database:trimming", "makes the statements that other places define"),
    not_run("storage.pooler:_value", "identities and process numbers, at the start of a replica"),
    not_run("storage.pooler:check_direct_of", "reads the number of the process and no table"),
    not_run("storage.pooler:check_pooled", "reads settings, at the start of a replica"),
    not_run("storage.revision:read", "a table of one row, at the start of a replica"),
    not_run("storage.scan:fetch_few", _SENDS),
    not_run("storage.session.inventory:_NOW", "reads no table"),
)
