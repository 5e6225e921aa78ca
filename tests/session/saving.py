"""Helpers of the checkpoint tests: a client, and applications with a state hook."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import checkpoint_service_pb2, session_pb2
from roost.session.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from tests.container.harness import APP, TOKEN
from tests.session.harness import TIMEOUT, key, spec

if TYPE_CHECKING:
    from tests.session.harness import Replica, World

pb = checkpoint_service_pb2
Checkpoint = pb.Checkpoint
APPLICATION = Path(__file__).with_name("stateful_app.py")
HOOK = container_pb.StateHook(http_path="/state")


def large(size: int, seed: str = "", **env: str) -> container_pb.ContainerSpec:
    """An application with a state of `size` incompressible bytes; see `stateful_app`."""
    return container_pb.ContainerSpec(
        image="roost/base",
        command=(sys.executable, str(APPLICATION)),
        env={"STATE_BYTES": str(size), "STATE_SEED": seed, **env},
        state_hook=HOOK,
    )


def hooked(**env: str) -> container_pb.ContainerSpec:
    """A counter with a state hook."""
    return spec(state_hook=HOOK, env=env)


async def mounting(roost: World, **fields: Any) -> container_pb.ContainerSpec:
    """A counter on a new volume. Any: fields of the spec, of every type."""
    made = await roost.http.post(
        f"{roost.emulator.api_url}/v1/apps/{APP}/volumes",
        json={"name": "data", "size_gb": 1},
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    made.raise_for_status()
    mount = container_pb.Mount(volume_id=str(made.json()["id"]), path="/data")
    return spec(mounts=[mount], env={"COUNTER_FILE": "/data/count"}, **fields)


@dataclass(frozen=True)
class Checkpoints:
    """A client of one replica's CheckpointService."""

    stub: CheckpointServiceStub

    async def create(self, session_id: str, **fields: Any) -> pb.Checkpoint:
        """CreateCheckpoint."""
        request = pb.CreateCheckpointRequest(session_id=session_id, **fields)
        return (await self.stub.CreateCheckpoint(request, timeout=TIMEOUT)).checkpoint

    async def get(self, checkpoint_id: str) -> pb.Checkpoint:
        """GetCheckpoint."""
        request = pb.GetCheckpointRequest(checkpoint_id=checkpoint_id)
        return (await self.stub.GetCheckpoint(request, timeout=TIMEOUT)).checkpoint

    async def of(self, user_id: str = "wren", **fields: Any) -> list[pb.Checkpoint]:
        """ListCheckpoints of a key."""
        request = pb.ListCheckpointsRequest(key=key(user_id), **fields)
        return list((await self.stub.ListCheckpoints(request, timeout=TIMEOUT)).checkpoints)

    async def restore(self, session_id: str, **fields: Any) -> pb.RestoreCheckpointResponse:
        """RestoreCheckpoint."""
        request = pb.RestoreCheckpointRequest(session_id=session_id, **fields)
        return await self.stub.RestoreCheckpoint(request, timeout=TIMEOUT)

    async def delete(self, checkpoint_id: str, **fields: Any) -> None:
        """DeleteCheckpoint."""
        request = pb.DeleteCheckpointRequest(checkpoint_id=checkpoint_id, **fields)
        await self.stub.DeleteCheckpoint(request, timeout=TIMEOUT)

    async def pin(self, checkpoint_id: str, *, pinned: bool = True, **fields: Any) -> pb.Checkpoint:
        """PinCheckpoint."""
        request = pb.PinCheckpointRequest(checkpoint_id=checkpoint_id, pinned=pinned, **fields)
        return (await self.stub.PinCheckpoint(request, timeout=TIMEOUT)).checkpoint

    async def fork(self, checkpoint_id: str, user_id: str, **fields: Any) -> pb.ForkSessionResponse:
        """ForkSession."""
        request = pb.ForkSessionRequest(checkpoint_id=checkpoint_id, key=key(user_id), **fields)
        return await self.stub.ForkSession(request, timeout=TIMEOUT)


def client(replica: Replica) -> Checkpoints:
    """A client of this replica."""
    return Checkpoints(CheckpointServiceStub(replica.channel))


async def counting(
    roost: World, clicks: int, user_id: str = "wren", **env: str
) -> session_pb2.Session:
    """A session whose counter shows `clicks`."""
    session = (await roost.one.start(user_id, spec=hooked(**env))).session
    for _ in range(clicks):
        await roost.counter(session, "/click")
    return session


def execute(url: str, statement: str, *values: object) -> list[Any]:
    """Run a statement; return its rows, empty for a statement without rows. Any: every type."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def flip(url: str, checkpoint_id: str) -> None:
    """Flip one bit in the middle of a checkpoint's first chunk, as a faulty disk would."""
    execute(
        url,
        "UPDATE checkpoint_chunks SET bytes = set_bit(bytes, 8 * (length(bytes) / 2)::bigint + 1, "
        "1 - get_bit(bytes, 8 * (length(bytes) / 2)::bigint + 1)) "
        "WHERE checkpoint_id = %s AND number = 0",
        checkpoint_id,
    )
