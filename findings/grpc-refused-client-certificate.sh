#!/usr/bin/env bash
# grpcio 1.85.1 (client and server), mutual TLS: a client without a certificate, or with one of another
# authority, gets UNAVAILABLE "Socket closed", and no word of TLS or certificates. A server whose
# certificate the client does not trust is UNAVAILABLE too, but names the certificate.
#
# Consequence: a retry policy for UNAVAILABLE repeats a call that can never succeed, and the reason is
# only in the server's own output. Both are the same status as a server that restarts.
# The server and client are of this script, on the loopback interface. Exit status 1: it behaves
# otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1 trustme==1.2.1
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import asyncio
import sys

import grpc
import trustme

ALONE = (("grpc.use_local_subchannel_pool", 1),)


async def empty(request, context):
    return b""


def pair(authority, name):
    made = authority.issue_cert("127.0.0.1", common_name=name)
    chain = b"".join(part.bytes() for part in made.cert_chain_pems)
    return made.private_key_pem.bytes(), chain


async def outcome(port, credentials):
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=ALONE) as channel:
        try:
            await channel.unary_unary("/example.Service/Empty")(b"", timeout=20)
        except grpc.aio.AioRpcError as error:
            told = [word for word in ("CERTIFICATE", "Socket closed") if word in error.details()]
            return error.code().name, told
        return "OK", []


async def main():
    print("grpcio", grpc.__version__)
    ours, strangers = trustme.CA(), trustme.CA()
    trusted, other = ours.cert_pem.bytes(), strangers.cert_pem.bytes()
    server = grpc.aio.server()
    handler = {"Empty": grpc.unary_unary_rpc_method_handler(empty)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("example.Service", handler),)
    )
    credentials = grpc.ssl_server_credentials([pair(ours, "server")], trusted, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    key, chain = pair(ours, "client")
    their_key, their_chain = pair(strangers, "client")
    seen = {
        "its own": await outcome(port, grpc.ssl_channel_credentials(trusted, key, chain)),
        "none": await outcome(port, grpc.ssl_channel_credentials(trusted)),
        "a stranger's": await outcome(
            port, grpc.ssl_channel_credentials(trusted, their_key, their_chain)
        ),
        "its own, and it trusts another authority": await outcome(
            port, grpc.ssl_channel_credentials(other, key, chain)
        ),
    }
    await server.stop(0)
    for shown, found in seen.items():
        print(f"client shows {shown}: {found}")
    closed = ("UNAVAILABLE", ["Socket closed"])
    named = ("UNAVAILABLE", ["CERTIFICATE"])
    return list(seen.values()) == [("OK", []), closed, closed, named]


sys.exit(not asyncio.run(main()))
PYTHON
# Seen on 2026-11-30:
# grpcio 1.85.1
# client shows its own: ('OK', [])
# client shows none: ('UNAVAILABLE', ['Socket closed'])
# client shows a stranger's: ('UNAVAILABLE', ['Socket closed'])
# client shows its own, and it trusts another authority: ('UNAVAILABLE', ['CERTIFICATE'])
