#!/usr/bin/env bash
# obstore 0.12.1: a multipart upload that does not succeed can stay in the bucket.
#
# 1. put_async of a stream is cancelled (or times out): CreateMultipartUpload was sent, and
#    AbortMultipartUpload never is. obstore tells nobody the upload's id, and has no call to abort it.
# 2. The source raises instead: AbortMultipartUpload is sent at once, while an UploadPart is still
#    on its way. S3 may store a part that is in progress during an abort, and asks to abort again
#    (docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html); obstore does not.
#
# Consequence: give the bucket a lifecycle rule, or put objects with use_multipart=False.
# The store is a server of this script on the loopback interface. Exit status 1: it behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys
from importlib.metadata import version

from obstore.store import S3Store

PART = 5 * 1024 * 1024


class Server:
    """Answers CreateMultipartUpload and AbortMultipartUpload; holds every UploadPart."""

    def __init__(self):
        self.log, self.part, self.abort = [], asyncio.Event(), asyncio.Event()
        self.release = asyncio.Event()

    async def answer(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r")[0] or 0)
                await reader.readexactly(length)
                method, path = head.split(" ")[:2]
                body = b""
                if method == "post":
                    self.log.append("CreateMultipartUpload")
                    body = b"<R><UploadId>1</UploadId></R>"
                elif method == "put":
                    self.log.append("UploadPart begins")
                    self.part.set()
                    await self.release.wait()
                    self.log.append("UploadPart ends")
                elif method == "delete" and "uploadid=" in path:
                    self.log.append("AbortMultipartUpload")
                    self.abort.set()
                answer = f'HTTP/1.1 200 OK\r\netag: "1"\r\ncontent-length: {len(body)}\r\n\r\n'
                writer.write(answer.encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()


async def put(server, port, source):
    store = S3Store(
        "bucket", endpoint=f"http://127.0.0.1:{port}", region="r", access_key_id="k",
        secret_access_key="s", client_options={"allow_http": True},
    )
    await store.put_async("object", source, chunk_size=PART, max_concurrency=2)


async def case(raises):
    server = Server()
    listener = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]

    async def source():
        yield bytes(PART)
        yield b"more"
        await server.part.wait()
        if raises:
            raise RuntimeError("the source failed")
        await asyncio.Event().wait()

    task = asyncio.create_task(put(server, port, source()))
    await asyncio.wait_for(server.part.wait(), 20)
    if raises:
        await asyncio.wait_for(server.abort.wait(), 20)
    else:
        task.cancel()
    server.release.set()
    result = (await asyncio.gather(task, return_exceptions=True))[0]
    # An abort would come at once; it is given time on a slow machine.
    await asyncio.sleep(2)
    listener.close()
    return type(result).__name__, server.log


async def main():
    print("obstore", version("obstore"))
    name, cancelled = await case(raises=False)
    print(f"cancelled: {name}; the store got:", ", ".join(cancelled))
    name, raised = await case(raises=True)
    print(f"source raises: {name}; the store got:", ", ".join(raised))
    return (
        "CreateMultipartUpload" in cancelled
        and "AbortMultipartUpload" not in cancelled
        and raised.count("AbortMultipartUpload") == 1
        and raised.index("AbortMultipartUpload") < raised.index("UploadPart ends")
    )


sys.exit(not asyncio.run(main()))
PYTHON
# Seen on 2026-11-29:
# obstore 0.12.1
# cancelled: CancelledError; the store got: CreateMultipartUpload, UploadPart begins, UploadPart ends
# source raises: RuntimeError; the store got: CreateMultipartUpload, UploadPart begins,
#   AbortMultipartUpload, UploadPart ends
