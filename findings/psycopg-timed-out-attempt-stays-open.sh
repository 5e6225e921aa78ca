#!/usr/bin/env bash
# psycopg 3.3.9: a connection attempt that ends with ConnectionTimeout keeps its socket open for as
# long as somebody keeps the exception: the half-made connection is a local variable of a frame in its
# traceback, and nothing else closes it. A garbage collection does not help, and the server counts the
# connection against its limit as soon as it can answer.
#
# Consequence: what keeps exceptions (a log record that is captured, a stored "last error", an
# exception group) keeps connections. `traceback.clear_frames` lets go of them.
# The server that never answers is a socket of this script, on the loopback interface. Exit status 1: it
# behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "psycopg[binary]==3.3.9"
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import gc
import sys
import traceback

import psycopg


async def main():
    print("psycopg", psycopg.__version__)
    closed = asyncio.Event()

    async def silent(reader, writer):
        while await reader.read(1000):
            pass
        closed.set()
        writer.close()

    async def is_closed():
        try:
            async with asyncio.timeout(1):
                await closed.wait()
        except TimeoutError:
            return False
        return True

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address = f"host=127.0.0.1 port={port} user=somebody sslmode=disable gssencmode=disable"
    kept = None
    try:
        await psycopg.AsyncConnection.connect(f"{address} connect_timeout=2")
    except psycopg.errors.ConnectionTimeout as error:
        kept = error
    print("the attempt ended with:", type(kept).__name__)
    gc.collect()
    while_kept = await is_closed()
    error = kept
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    after = await is_closed()
    server.close()
    print("closed while the exception is kept:", while_kept)
    print("closed after its frames were cleared:", after)
    return (while_kept, after) == (False, True)


sys.exit(not asyncio.run(main()))
PYTHON
# Seen on 2026-11-30:
# psycopg 3.3.9
# the attempt ended with: ConnectionTimeout
# closed while the exception is kept: False
# closed after its frames were cleared: True
