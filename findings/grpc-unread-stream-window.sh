#!/usr/bin/env bash
# grpcio 1.85.1, grpc.aio: a server stream whose client reads nothing takes megabytes before it blocks
# the server, and not the 64 KiB that HTTP/2's default window suggests: the client's core enlarges the
# window by its measurement of the bandwidth (BDP), whether the application reads or not. With
# `grpc.http2.bdp_probe` 0 at the client the window keeps its size.
#
# Consequence: a message of a megabyte or two is no proof that somebody reads, and memory for slow
# readers is bounded by what the server holds itself, not by the window.
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

KIB = 32
MOST = 2048  # messages: 64 MiB
QUIET = 2.0  # s without a message: blocked


async def taken(options):
    """How many KiB of a stream the server can write while nobody reads it."""
    written = 0
    done = asyncio.Event()

    async def stream(request, context):
        nonlocal written
        while written < MOST:
            await context.write(b"x" * (KIB * 1024))
            written += 1
        done.set()

    server = grpc.aio.server()
    handler = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("example.Service", handler),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = (*options, ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = channel.unary_stream("/example.Service/Stream")(b"")
        before = -1
        while written != before and not done.is_set():
            before = written
            await asyncio.sleep(QUIET)
        call.cancel()
    await server.stop(0)
    return written * KIB


async def main():
    print("grpcio", grpc.__version__)
    usual = await taken(())
    fixed = await taken((("grpc.http2.bdp_probe", 0),))
    print("unread, by default: more than 1 MiB:", usual > 1024)
    print("unread, without the probe: at most 256 KiB:", fixed <= 256)
    return usual > 1024 and fixed <= 256


sys.exit(not asyncio.run(main()))
PYTHON
# Seen on 2026-11-30:
# grpcio 1.85.1
# unread, by default: more than 1 MiB: True
# unread, without the probe: at most 256 KiB: True
