"""The composition of policies: puts them onto the server, and tells live sessions of changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.session.v1 import policy_service_pb2 as pb
from roost.session.v1 import policy_service_pb2_grpc as rpc
from session_service import loops
from session_service.rpc.policy_servicer import PolicyServicer

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    import grpc.aio

    from session_service.lifecycle.policies import Policies

SERVICE = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
#: A change tells live sessions itself; this often, in s, comes what a dying replica left of that.
TELL_EVERY = 15.0


async def add(stack: AsyncExitStack, server: grpc.aio.Server, policies: Policies) -> None:
    """Let the server answer the policy service's calls; the stack ends what runs behind them."""
    rpc.add_PolicyServiceServicer_to_server(PolicyServicer(policies), server)
    await stack.enter_async_context(loops.running("policies", policies.spread, every=TELL_EVERY))
