#!/usr/bin/env bash
# obstore 0.12.1: S3Store takes its endpoint and token from the environment although it was given
# another endpoint, and a key of its own.
#
# 1. AWS_ENDPOINT_URL_S3 overrides the argument `endpoint`: requests go to another store.
#    Passing `aws_endpoint_url_s3` as well prevents that.
# 2. AWS_SESSION_TOKEN is sent with the key of the arguments, to which it does not belong; S3 rejects
#    that as InvalidToken. Passing session_token="" sends and signs an empty token. A
#    `credential_provider` that returns the key prevents it.
#
# Both variables are common: they are what the tools of clouds set for a process. The store is a server
# of this script on the loopback interface. Exit status 1: it behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
env -u http_proxy -u HTTP_PROXY -u all_proxy -u ALL_PROXY "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import os
import sys
from importlib.metadata import version

from obstore.store import S3Store


async def listen(log):
    async def answer(reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            await reader.readexactly(int(fields.get("content-length", 0)))
            log.append(fields.get("x-amz-security-token"))
            writer.write(b'HTTP/1.1 200 OK\r\netag: "1"\r\ncontent-length: 0\r\n\r\n')
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    return listener, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def main():
    print("obstore", version("obstore"))
    given, other = [], []
    first, here = await listen(given)
    second, there = await listen(other)
    common = {"region": "r", "client_options": {"allow_http": True}}
    keys = {"access_key_id": "key", "secret_access_key": "secret"}

    os.environ["AWS_ENDPOINT_URL_S3"] = there
    await S3Store("bucket", endpoint=here, **keys, **common).put_async("object", b"x")
    wrong_store = (len(given), len(other))
    print("endpoint=first, AWS_ENDPOINT_URL_S3=second; puts at first, second:", *wrong_store)
    both = {"endpoint": here, "aws_endpoint_url_s3": here}
    await S3Store("bucket", **both, **keys, **common).put_async("object", b"x")
    print("with aws_endpoint_url_s3=first as well:", len(given), len(other))
    del os.environ["AWS_ENDPOINT_URL_S3"]

    os.environ["AWS_SESSION_TOKEN"] = "token-of-another-key"
    await S3Store("bucket", endpoint=here, **keys, **common).put_async("object", b"x")
    wrong_token = given[-1]
    print("access_key_id=key, AWS_SESSION_TOKEN=token-of-another-key; token sent:", wrong_token)
    await S3Store(
        "bucket", endpoint=here, **common,
        credential_provider=lambda: {**keys, "token": None, "expires_at": None},
    ).put_async("object", b"x")
    print("with a credential_provider instead:", given[-1])
    first.close()
    second.close()
    return (wrong_store, wrong_token, given[-1]) == ((0, 1), "token-of-another-key", None)


sys.exit(not asyncio.run(main()))
PYTHON
# Seen on 2026-11-29:
# obstore 0.12.1
# endpoint=first, AWS_ENDPOINT_URL_S3=second; puts at first, second: 0 1
# with aws_endpoint_url_s3=first as well: 1 1
# access_key_id=key, AWS_SESSION_TOKEN=token-of-another-key; token sent: token-of-another-key
# with a credential_provider instead: None
