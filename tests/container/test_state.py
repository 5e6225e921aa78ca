"""An application's own state, out of a container and back into it, through each kind of hook."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import httpx
import pytest

from container_service import hook_commands
from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1 import container_service_pb2_grpc as rpc
from tests.container.harness import Service, failing, read_failure, serving, until
from tests.container.test_process import running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable

    from tests.container.harness import Failure

MB = 1024 * 1024
# Kept in one file; the words that follow the function's name are what Roost adds.
FILE = "h() { case $1 in capture) cat state;; restore) cat >state;; esac; }; h"


def http(path: str = "/state") -> pb.StateHook:
    return pb.StateHook(http_path=path)


def command(line: str = FILE) -> pb.StateHook:
    return pb.StateHook(command=line)


def capturing(service: Service, container_id: str, hook: pb.StateHook, timeout: float = 50) -> Any:
    request = pb.CaptureStateRequest(container_id=container_id, state_hook=hook)
    return service.stub.CaptureState(request, timeout=timeout)


async def capture(service: Service, container_id: str, hook: pb.StateHook) -> bytes:
    """The whole state, proved to be whole."""
    parts: list[pb.CaptureStateResponse] = [
        part async for part in capturing(service, container_id, hook)
    ]
    state = b"".join(part.chunk for part in parts)
    assert all(len(part.chunk) <= 256 * 1024 for part in parts)
    assert not any(part.sha256 or part.total_bytes for part in parts[:-1])
    assert parts[-1].total_bytes == len(state)
    assert parts[-1].sha256 == hashlib.sha256(state).digest()
    return state


async def capture_fails(
    service: Service, container_id: str, hook: pb.StateHook, timeout: float = 50
) -> tuple[Failure, list[pb.CaptureStateResponse]]:
    """The failure of a capture, and what came before it."""
    parts: list[pb.CaptureStateResponse] = []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for part in capturing(service, container_id, hook, timeout):
            parts.append(part)  # noqa: PERF401
    assert not any(part.sha256 for part in parts)
    return read_failure(refused.value), parts


def messages(
    container_id: str, hook: pb.StateHook, chunks: Iterable[bytes]
) -> AsyncIterator[pb.RestoreStateRequest]:
    async def each() -> AsyncIterator[pb.RestoreStateRequest]:
        yield pb.RestoreStateRequest(container_id=container_id, state_hook=hook)
        for chunk in chunks:
            yield pb.RestoreStateRequest(chunk=chunk)

    return each()


def restoring(
    service: Service, container_id: str, hook: pb.StateHook, chunks: Iterable[bytes]
) -> Any:
    return service.stub.RestoreState(messages(container_id, hook, chunks), timeout=50)


async def restore(service: Service, container_id: str, hook: pb.StateHook, state: bytes) -> None:
    """Put a state into a container, in pieces of an odd size."""
    pieces = [state[start : start + 99_999] for start in range(0, len(state), 99_999)]
    answer = await restoring(service, container_id, hook, pieces)
    assert answer.bytes_written == len(state)
    assert answer.sha256 == hashlib.sha256(state).digest()


async def counter(service: Service, name: str = "roost-wren-1", **env: str) -> str:
    return await service.create(name, image="roost/counter", env=env)


async def run(service: Service, container_id: str, *words: str) -> str:
    request = pb.ExecContainerRequest(container_id=container_id, command=words)
    done = await service.stub.ExecContainer(request, timeout=20)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout)


# An application of a test's own: what follows is the body of a handler over a plain socket, `ask`
# the head of the request, `body` a file to read the rest from, `say` what sends bytes.
SERVER = """
import os, socket, time
taken = b""
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    line, _ = server.accept()
    body, say = line.makefile("rb"), line.sendall
    ask = b""
    try:
        while (head := body.readline()).strip():
            ask += head
        if ask:
            {body}
    except OSError:
        pass
    body.close()
    line.close()
"""


async def served(service: Service, code: str) -> str:
    """A container with an application of this code."""
    body = textwrap.indent(textwrap.dedent(code).strip(), " " * 12).strip()
    return await service.create(command=[sys.executable, "-c", SERVER.format(body=body)])


async def test_a_state_goes_round_over_http(service: Service) -> None:
    one = await counter(service, COUNTER_STATE_BYTES="300000")
    for _ in range(2):
        await click(service, one)
    state = await capture(service, one, http())
    assert state.startswith(b"2\n")
    assert len(state) == 300_002
    two = await counter(service, "roost-wren-2", COUNTER_FILE="count")
    await restore(service, two, http(), state)
    assert await capture(service, two, http()) == state
    # Behind the hook is whatever keeps the count: here a file.
    assert await run(service, two, "cat", "count") == "2"


async def click(service: Service, container_id: str) -> None:
    headers = {"fly-force-instance-id": container_id}
    async with httpx.AsyncClient(base_url=service.emulator.proxy_url, trust_env=False) as client:
        (await client.get("/click", headers=headers)).raise_for_status()


@pytest.mark.parametrize("size", [0, 1, 70_000, hook_commands.PIECE_BYTES, 600_000])
async def test_a_state_goes_round_through_a_command(service: Service, size: int) -> None:
    # Every byte there is, none of them at a border that a piece or a block has too.
    state = (bytes(range(256)) * (size // 256 + 1))[:size]
    container_id = await service.create()
    await restore(service, container_id, command(), state)
    assert await capture(service, container_id, command()) == state
    digest = await run(service, container_id, "sha256sum", "state")
    assert digest.split()[0] == hashlib.sha256(state).hexdigest()


async def test_a_small_state_takes_one_exec_each_way(service: Service) -> None:
    container_id = await service.create()
    mark = await service.mark()
    await restore(service, container_id, command(), b"small")
    assert await capture(service, container_id, command()) == b"small"
    assert await service.requests(mark) == ["get", "exec", "get", "exec"]


async def test_no_bytes_are_a_state_too(service: Service) -> None:
    container_id = await served(
        service,
        """
        if ask.startswith(b"PUT"):
            taken = body.readline()
        say(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
        """,
    )
    assert await capture(service, container_id, http()) == b""
    await restore(service, container_id, http(), b"")


async def test_64_mb_flow_both_ways_in_bounded_memory(service: Service) -> None:
    container_id = await counter(service, COUNTER_STATE_BYTES=str(64 * MB))
    template = service.emulator.proxy_url
    async with one_process(service, ROOST_URL_TEMPLATE=template) as (pid, elsewhere):
        warm = await served_by(elsewhere, container_id)
        before = memory_kb(pid, "VmRSS")
        forget_high_water(pid)
        digest, size = hashlib.sha256(), 0
        async for part in capturing(elsewhere, container_id, http()):
            digest.update(part.chunk)
            size += len(part.chunk)
        assert (part.total_bytes, part.sha256) == (size, digest.digest())
        assert size == warm + 64 * MB
        captured = memory_kb(pid, "VmHWM") - before

        filler = filler_of(64 * MB)
        answer = await restoring(elsewhere, container_id, http(), filler)
        assert (answer.bytes_written, answer.sha256) == (size, digest.digest())
        restored = memory_kb(pid, "VmHWM") - before
    print(f"memory grew by {captured} kB over a capture, {restored} kB with a restore")
    assert captured < 12_000
    assert restored < 16_000


def filler_of(size: int) -> Iterable[bytes]:
    """The state of a counter at 0 with so much filler."""
    yield b"0\n"
    for number in range(size // 65_536):
        yield number.to_bytes(8, "big") + (bytes(range(256)) * 256)[8:]


async def served_by(service: Service, container_id: str) -> int:
    """Have a service do all of it once; the bytes of the count alone."""
    return len(await capture(service, container_id, http("/?small"))) + 1  # and the line's end


@asynccontextmanager
async def one_process(service: Service, **env: str) -> AsyncGenerator[tuple[int, Service]]:
    """The same with a container_service in a process of its own."""
    async with (
        running(service.emulator, **env) as (process, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        stub = rpc.ContainerServiceStub(channel)
        yield process.pid, Service(target, stub, channel, service.admin, service.emulator)


def forget_high_water(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory_kb(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


CUT_SHORT = {
    "a length": 'say(b"HTTP/1.1 200 OK\\r\\ncontent-length: 500000\\r\\n\\r\\n" + b"x" * 200000)',
    "chunks": (
        'say(b"HTTP/1.1 200 OK\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n"'
        ' + b"30d40\\r\\n" + b"x" * 200000 + b"\\r\\n")'
    ),
}


@pytest.mark.parametrize("form", CUT_SHORT)
async def test_a_capture_that_is_cut_is_never_ok(service: Service, form: str) -> None:
    container_id = await served(service, CUT_SHORT[form])
    failure, parts = await capture_fails(service, container_id, http())
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )
    assert failure.retry_seconds
    assert sum(len(part.chunk) for part in parts) < 500_000


async def test_a_container_killed_while_it_is_captured_is_never_ok(service: Service) -> None:
    container_id = await counter(service, COUNTER_STATE_BYTES=str(64 * MB))
    call = capturing(service, container_id, http())
    await anext(aiter(call))
    request = pb.DestroyContainerRequest(container_id=container_id, force=True)
    await service.stub.DestroyContainer(request, timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for part in call:
            assert not part.sha256
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_state_fetched_by_command_that_breaks_off_is_never_ok(
    service: Service, tmp_path: Path
) -> None:
    container_id, scratch = await scratching(service, tmp_path)
    call = capturing(service, container_id, command("head -c 3000000 /dev/zero #"))
    await anext(aiter(call))
    # The third piece waits for the rate of execs.
    for file in scratch.iterdir():
        file.unlink()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for part in call:
            assert not part.sha256
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def scratching(service: Service, tmp_path: Path) -> tuple[str, Path]:
    """A container and its own folder for temporary files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return await service.create(env={"TMPDIR": str(scratch)}), scratch


async def test_a_piece_whose_answer_was_lost_is_asked_for_again(service: Service) -> None:
    container_id = await service.create()
    state = bytes(600_000)
    await restore(service, container_id, command(), state)
    call = capturing(service, container_id, command())
    reading = aiter(call)
    got = (await anext(reading)).chunk
    await service.admin.set_fault("answer_lost", action="exec", answer="close")
    async for part in reading:
        got += part.chunk
    assert got == state


async def test_a_restore_that_its_caller_breaks_off_changes_nothing(service: Service) -> None:
    one = await counter(service)
    sent = asyncio.Event()

    async def half() -> AsyncIterator[pb.RestoreStateRequest]:
        yield pb.RestoreStateRequest(container_id=one, state_hook=http(), chunk=b"41\n")
        sent.set()
        await asyncio.Event().wait()

    call = service.stub.RestoreState(half(), timeout=50)
    await sent.wait()
    await until(lambda: service.asked("get"))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await capture(service, one, http()) == b"0\n"


async def test_a_container_killed_while_it_is_restored_is_unavailable(service: Service) -> None:
    container_id = await served(service, "body.read(100_000); os._exit(0)")
    failure = await failing(restoring(service, container_id, http(), [bytes(MB)] * 8))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )


@asynccontextmanager
async def gateway(service: Service, answer: bytes) -> AsyncGenerator[Service]:
    """A service whose containers are behind a gateway that answers so, whatever it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        # What is still to come is not read: the caller's own writes fail.
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        serving(service.emulator, url_template=f"http://127.0.0.1:{port}") as behind,
    ):
        yield behind


async def test_a_body_without_a_length_cannot_be_proved_whole(service: Service) -> None:
    container_id = await service.create()
    async with gateway(service, b"HTTP/1.1 200 OK\r\n\r\nall, or half?") as behind:
        failure, parts = await capture_fails(behind, container_id, http())
    assert parts == []
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STATE_HOOK_FAILED",
    )


async def test_an_ok_before_the_whole_was_sent_is_not_believed(service: Service) -> None:
    container_id = await service.create()
    async with gateway(service, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as behind:
        failure = await failing(restoring(behind, container_id, http(), [bytes(MB)] * 64))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )


# Reads a body to its end first: a close before that would be a reset.
REFUSES = r"""
while ask.startswith(b"PUT") and body.readline() != b"0\r\n":
    pass
say(b"HTTP/1.1 {status} No\r\n{more}content-length: 13\r\n\r\nno state here")
"""


@pytest.mark.parametrize("status", [400, 404, 500, 501])
async def test_a_hook_that_refuses_is_quoted(service: Service, status: int) -> None:
    code = REFUSES.format(status=status, more="")
    container_id = await served(service, code)
    failure, parts = await capture_fails(service, container_id, http())
    assert parts == []
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STATE_HOOK_FAILED",
    )
    assert failure.metadata["http_status"] == str(status)
    assert failure.metadata["said"] == "no state here"
    failure = await failing(restoring(service, container_id, http(), [b"x"]))
    assert (failure.reason, failure.metadata["http_status"]) == ("STATE_HOOK_FAILED", str(status))


async def test_a_hook_that_raves_is_quoted_in_part(service: Service) -> None:
    container_id = await served(
        service, 'say(b"HTTP/1.1 500 No\\r\\n\\r\\n" + b"rave\\r\\n" * 300000)'
    )
    failure, _ = await capture_fails(service, container_id, http())
    assert failure.reason == "STATE_HOOK_FAILED"
    assert 100 < len(failure.message) <= 400


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_that_does_not_reach_it_is_unavailable(
    service: Service, status: int
) -> None:
    container_id = await served(service, REFUSES.format(status=status, more=""))
    failure, _ = await capture_fails(service, container_id, http())
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )


async def test_no_redirect_is_followed(service: Service) -> None:
    other = await counter(service, "roost-wren-2")
    more = rf"location: http://{other}.birds.localhost/state\r\n"
    container_id = await served(service, REFUSES.format(status=307, more=more))
    failure, _ = await capture_fails(service, container_id, http())
    assert (failure.reason, failure.metadata["http_status"]) == ("STATE_HOOK_FAILED", "307")


async def test_a_coded_body_is_refused(service: Service) -> None:
    head = r"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx"
    container_id = await served(service, f'say(b"{head}")')
    failure, _ = await capture_fails(service, container_id, http())
    assert failure.reason == "STATE_HOOK_FAILED"


async def test_a_command_that_fails_is_quoted(service: Service) -> None:
    container_id = await service.create()
    hook = command("echo it is on fire >&2; exit 3; :")
    failure, parts = await capture_fails(service, container_id, hook)
    assert parts == []
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STATE_HOOK_FAILED",
    )
    assert (failure.metadata["exit_code"], failure.metadata["said"]) == ("3", "it is on fire")
    failure = await failing(restoring(service, container_id, hook, [b"x"]))
    assert (failure.reason, failure.metadata["exit_code"]) == ("STATE_HOOK_FAILED", "3")


async def test_commands_leave_no_file_behind(service: Service, tmp_path: Path) -> None:
    container_id, scratch = await scratching(service, tmp_path)
    state = bytes(600_000)
    await restore(service, container_id, command(), state)
    assert await capture(service, container_id, command()) == state
    await capture_fails(service, container_id, command("cat state; false"))
    call = capturing(service, container_id, command())
    await anext(aiter(call))
    assert list(scratch.iterdir())
    call.cancel()

    async def gone() -> bool:
        return not list(scratch.iterdir())

    await until(gone)


@pytest.mark.parametrize("hook", [http(), command("head -c 1002 /dev/zero #")], ids=str)
async def test_a_state_above_the_limit_is_refused(service: Service, hook: pb.StateHook) -> None:
    container_id = await counter(service, COUNTER_STATE_BYTES="1000")
    async with serving(service.emulator, state_limit=1001) as tight:
        failure, parts = await capture_fails(tight, container_id, hook)
        assert parts == []
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "STATE_TOO_LARGE",
        )
        assert failure.retry_seconds is None
        failure = await failing(restoring(tight, container_id, hook, [b"5\n", bytes(1000)]))
        assert failure.reason == "STATE_TOO_LARGE"
    assert (await capture(service, container_id, http())).startswith(b"0\n")


async def test_a_stream_above_the_limit_is_cut(service: Service) -> None:
    chunks = r'say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")'
    endless = chunks + '\nwhile True: say(b"1000\\r\\n" + bytes(4096) + b"\\r\\n")'
    container_id = await served(service, endless)
    async with serving(service.emulator, state_limit=1_000_000) as tight:
        failure, parts = await capture_fails(tight, container_id, http())
        assert failure.reason == "STATE_TOO_LARGE"
        assert sum(len(part.chunk) for part in parts) <= 1_000_000


PATHS = [
    "", "state", "http://elsewhere/state", "//elsewhere/state", "/%2felsewhere/state",
    "/../v1/apps", "/a/%2e%2E/b", "/a/..", "/sta\nte", "/state%0d%0ahost:x", "/state\\x", "/sta te",
    "/state#x", "/%zz", "/é", "/" + "x" * 1024,
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=ascii)
async def test_a_bad_path_is_refused_by_name(service: Service, path: str) -> None:
    failure, _ = await capture_fails(service, "a", http(path))
    assert (failure.code, failure.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ("state_hook.http_path",),
    )
    failure = await failing(restoring(service, "a", http(path), [b"x"]))
    assert failure.fields == ("state_hook.http_path",)
    spec = pb.ContainerSpec(image="roost/base", state_hook=http(path))
    request = pb.CreateContainerRequest(name="roost-wren-1", spec=spec)
    failure = await failing(service.stub.CreateContainer(request, timeout=9))
    assert failure.fields == ("spec.state_hook.http_path",)
    assert await service.requests() == []


async def test_what_is_missing_is_named(service: Service) -> None:
    failure, _ = await capture_fails(service, "", pb.StateHook())
    assert failure.fields == ("container_id", "state_hook")
    failure = await failing(service.stub.RestoreState(iter([]), timeout=9))
    assert failure.fields == ("container_id", "state_hook")
    failure, _ = await capture_fails(service, "a", command(""))
    assert failure.fields == ("state_hook.command",)


async def test_only_the_first_message_names_the_container(service: Service) -> None:
    container_id = await counter(service)
    first = pb.RestoreStateRequest(container_id=container_id, state_hook=http(), chunk=b"7\n")
    call = service.stub.RestoreState(
        iter([first, pb.RestoreStateRequest(container_id="b", chunk=b"x")]), timeout=20
    )
    assert (await failing(call)).fields == ("container_id",)
    assert await capture(service, container_id, http()) == b"0\n"


@pytest.mark.parametrize("path", ["", "/state"])
async def test_a_caller_that_sends_on_hears_why_it_is_refused(service: Service, path: str) -> None:
    """Not that its own write failed, which is what gRPC's Python would tell it."""
    failure = await failing(restoring(service, "0" * 14, http(path), [bytes(MB)] * 64))
    assert failure.reason == ("CONTAINER_NOT_FOUND" if path else "INVALID_FIELD")


async def test_a_caller_that_never_ends_hears_it_too(service: Service) -> None:
    async def endless() -> AsyncIterator[pb.RestoreStateRequest]:
        yield pb.RestoreStateRequest(container_id="0" * 14, state_hook=http())
        await asyncio.Event().wait()

    call = service.stub.RestoreState(endless(), timeout=1.5)
    assert (await failing(call)).reason == "CONTAINER_NOT_FOUND"


@pytest.mark.parametrize("hook", [http(), command()], ids=str)
async def test_a_container_at_rest_is_not_woken(service: Service, hook: pb.StateHook) -> None:
    container_id = await counter(service)
    request = pb.SuspendContainerRequest(container_id=container_id)
    await service.stub.SuspendContainer(request, timeout=20)
    failure, _ = await capture_fails(service, container_id, hook)
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CONTAINER_STATE_CONFLICT",
    )
    failure = await failing(restoring(service, container_id, hook, [b"x"]))
    assert failure.reason == "CONTAINER_STATE_CONFLICT"
    assert await service.state(container_id) == pb.CONTAINER_STATE_SUSPENDED


async def test_an_unknown_container_is_not_found(service: Service) -> None:
    failure, _ = await capture_fails(service, "0" * 14, http())
    assert failure.reason == "CONTAINER_NOT_FOUND"


async def test_without_an_address_a_path_is_refused_by_name(service: Service) -> None:
    container_id = await counter(service)
    async with serving(service.emulator, url_template="") as homeless:
        failure, _ = await capture_fails(homeless, container_id, http())
    assert failure.fields == ("state_hook.http_path",)
    assert "ROOST_URL_TEMPLATE" in failure.message


async def test_a_slow_hook_ends_by_the_deadline(service: Service) -> None:
    container_id = await served(service, "time.sleep(30)")
    failure, _ = await capture_fails(service, container_id, http(), timeout=1)
    assert failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
