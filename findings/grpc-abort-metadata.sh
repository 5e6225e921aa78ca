#!/usr/bin/env bash
# grpcio 1.85.1, grpc.aio: trailing metadata given to `context.abort` takes the place of what
# `set_trailing_metadata` has set before; a handler that aborts without any keeps it.
#
# Consequence: give abort all of it, or a request id that was set at the begin of the call is lost in
# exactly the calls that fail.
# The server and client are of this script, on the loopback interface. Exit status 1: it behaves
# otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys

import grpc


async def with_more(request, context):
    context.set_trailing_metadata((("x-request-id", "1"),))
    await context.abort(grpc.StatusCode.UNAVAILABLE, "later", (("x-why", "full"),))


async def without(request, context):
    context.set_trailing_metadata((("x-request-id", "1"),))
    await context.abort(grpc.StatusCode.UNAVAILABLE, "later")


async def trailers(channel, method):
    try:
        await channel.unary_unary(f"/example.Service/{method}")(b"", timeout=20)
    except grpc.aio.AioRpcError as error:
        return dict(error.trailing_metadata())


async def main():
    print("grpcio", grpc.__version__)
    server = grpc.aio.server()
    handlers = {
        "With": grpc.unary_unary_rpc_method_handler(with_more),
        "Without": grpc.unary_unary_rpc_method_handler(without),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("example.Service", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        more, none = await trailers(channel, "With"), await trailers(channel, "Without")
    await server.stop(0)
    print("abort with x-why:", more)
    print("abort without metadata:", none)
    return more == {"x-why": "full"} and none == {"x-request-id": "1"}


sys.exit(not asyncio.run(main()))
PYTHON
# Seen on 2026-11-30:
# grpcio 1.85.1
# abort with x-why: {'x-why': 'full'}
# abort without metadata: {'x-request-id': '1'}
