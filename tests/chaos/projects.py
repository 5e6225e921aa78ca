"""The keys of a run and their policies: most keep state in memory, some in checkpoints."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub

if TYPE_CHECKING:
    import grpc.aio

#: The kind of a key (the first part of its user id) → its project.
PROJECTS = {"user": "chaos", "saved": "chaos-saved", "deep": "chaos-deep"}
SAVING = frozenset({"saved", "deep"})
#: keep_checkpoints of the projects with checkpoints.
KEEP = 3
#: Idle timeout in s, by the kind of a key.
IDLE = {"saved": 1800, "deep": 3}
_TIMEOUT = 20.0


def keys(plain: int, saved: int, deep: int) -> list[str]:
    """The given number of keys of each kind."""
    counts = {"user": plain, "saved": saved, "deep": deep}
    return [f"{kind}-{number:02}" for kind, count in counts.items() for number in range(count)]


def project_of(key: str) -> str:
    """The project of a key."""
    return PROJECTS[key.partition("-")[0]]


def saves(key: str) -> bool:
    """Whether the state of the key's sessions is saved."""
    return key.partition("-")[0] in SAVING


def idle_of(key: str) -> float:
    """The idle timeout of a key whose state is saved, in s."""
    return IDLE[key.partition("-")[0]]


def session_key(key: str) -> pb.SessionKey:
    """The key as a message."""
    return pb.SessionKey(project_id=project_of(key), user_id=key)


def recreates(key: str) -> bool:
    """Whether a start with another spec recreates the key's container."""
    return key.startswith("deep-")


def spec_of(**env: str) -> container_pb.ContainerSpec:
    """The spec of containers whose state is saved."""
    hook = container_pb.StateHook(http_path="/state")
    return container_pb.ContainerSpec(image="roost/counter", env=env, state_hook=hook)


def policies(seed: int) -> dict[str, pb.Policy]:
    """The policies of the projects with checkpoints; the seed chooses their variants."""
    dice = random.Random(f"{seed}:policies")
    spec = spec_of()
    saved = pb.Policy(
        persistence=pb.Policy.PERSISTENCE_CHECKPOINT,
        # Long: only callers pause these sessions.
        idle_timeout=Duration(seconds=IDLE["saved"]),
        checkpoint_every=Duration(seconds=dice.choice([1, 2])),
        keep_checkpoints=KEEP,
        spec=spec,
    )
    stops_first = dice.random() < 0.5
    deep = pb.Policy(
        persistence=pb.Policy.PERSISTENCE_HIBERNATE,
        idle_timeout=Duration(seconds=IDLE["deep"]),
        deepen_after=Duration(seconds=1 if stops_first else 86_400),
        checkpoint_after=Duration(seconds=2 if stops_first else 1),
        keep_checkpoints=KEEP,
        on_fingerprint_change=pb.Policy.ON_FINGERPRINT_CHANGE_RECREATE_KEEPING_FILES,
        spec=spec,
    )
    return {PROJECTS["saved"]: saved, PROJECTS["deep"]: deep}


async def set_policies(channel: grpc.aio.Channel, seed: int) -> None:
    """Set all policies."""
    stub = PolicyServiceStub(channel)
    for project, policy in policies(seed).items():
        await stub.UpdateProjectPolicy(
            policy_pb.UpdateProjectPolicyRequest(project_id=project, policy=policy),
            timeout=_TIMEOUT,
            # On a busy machine a first connection may fail, though the replica serves.
            wait_for_ready=True,
        )
