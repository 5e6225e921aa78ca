"""Which keys live under which policy: most in memory alone, some in checkpoints as well."""

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

#: By the first part of a user's name.
PROJECTS = {"user": "chaos", "saved": "chaos-saved", "deep": "chaos-deep"}
SAVING = frozenset({"saved", "deep"})
#: How many checkpoints a key of the saving projects keeps.
KEEP = 3
#: How long a key may be left alone until it is paused, in s, by the first part of a user's name.
IDLE = {"saved": 1800, "deep": 3}
_TIMEOUT = 20.0


def keys(plain: int, saved: int, deep: int) -> list[str]:
    """So many keys of each project."""
    counts = {"user": plain, "saved": saved, "deep": deep}
    return [f"{kind}-{number:02}" for kind, count in counts.items() for number in range(count)]


def project_of(key: str) -> str:
    """The project that the key is of."""
    return PROJECTS[key.partition("-")[0]]


def saves(key: str) -> bool:
    """Whether the state of the key's sessions is saved."""
    return key.partition("-")[0] in SAVING


def idle_of(key: str) -> float:
    """How long a key whose state is saved may be left alone until it is paused, in s."""
    return IDLE[key.partition("-")[0]]


def session_key(key: str) -> pb.SessionKey:
    """The key as a message."""
    return pb.SessionKey(project_id=project_of(key), user_id=key)


def recreates(key: str) -> bool:
    """Whether a start that asks for another spec makes the key's container anew."""
    return key.startswith("deep-")


def spec_of(**env: str) -> container_pb.ContainerSpec:
    """What containers are made of whose state is saved."""
    hook = container_pb.StateHook(http_path="/state")
    return container_pb.ContainerSpec(image="roost/counter", env=env, state_hook=hook)


def policies(seed: int) -> dict[str, pb.Policy]:
    """The policy of each project that has one of its own; what they differ in the seed decides."""
    dice = random.Random(f"{seed}:policies")
    spec = spec_of()
    saved = pb.Policy(
        persistence=pb.Policy.PERSISTENCE_CHECKPOINT,
        # Nobody but callers puts these to rest.
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
    """Set them all, before anybody starts."""
    stub = PolicyServiceStub(channel)
    for project, policy in policies(seed).items():
        await stub.UpdateProjectPolicy(
            policy_pb.UpdateProjectPolicyRequest(project_id=project, policy=policy),
            timeout=_TIMEOUT,
        )
