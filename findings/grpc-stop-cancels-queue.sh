#!/usr/bin/env bash
# grpcio 1.85.1, grpc.aio: calls that wait in the core when `Server.stop(grace)` begins end with
# CANCELLED, and their handler never runs, whatever `grace` is.
#
# grpc.aio takes one call at a time from gRPC's core. Of 100 callers in closed loops on one connection
# most have a call there at any time. A retry policy for UNAVAILABLE repeats none of them.
# Consequence: stop when no call arrives any more, or let clients repeat CANCELLED.
# The server and clients are of this script, on the loopback interface. Exit status 1: it behaves
# otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys
from collections import Counter

import grpc

CALLERS = 100
begun = set()


async def handle(request, context):
    begun.add(request)
    return b""


async def main():
    print("grpcio", grpc.__version__)
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("example.Service", {"Call": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ends, unseen, answered = Counter(), 0, 0

    async def caller(channel, number):
        nonlocal unseen, answered
        call, count = channel.unary_unary("/example.Service/Call"), 0
        while True:
            count += 1
            request = f"{number}/{count}".encode()
            try:
                await call(request, timeout=20)
                answered += 1
            except grpc.aio.AioRpcError as error:
                ends[error.code().name] += 1
                unseen += error.code() is grpc.StatusCode.CANCELLED and request not in begun
                return

    options = (("grpc.enable_retries", 0),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        callers = [asyncio.create_task(caller(channel, n)) for n in range(CALLERS)]
        while answered < 10 * CALLERS:
            await asyncio.sleep(0.01)
        await server.stop(20)
        await asyncio.wait(callers)
    print(f"the last calls of {CALLERS} callers, with a grace of 20 s:", dict(ends))
    print("CANCELLED without that the handler ran:", unseen)
    return ends["CANCELLED"] > 0 and unseen == ends["CANCELLED"]


sys.exit(not asyncio.run(main()))
PYTHON
# Seen on 2026-11-30:
# grpcio 1.85.1
# the last calls of 100 callers, with a grace of 20 s: {'CANCELLED': 98, 'UNAVAILABLE': 2}
# CANCELLED without that the handler ran: 98
