"""The services of the contract: the one list for all tests."""

from __future__ import annotations

from typing import Any

from roost.agent.v1 import agent_session_service_pb2
from roost.container.v1 import container_service_pb2
from roost.session.v1 import checkpoint_service_pb2, policy_service_pb2, session_service_pb2

#: The descriptors of what session_service serves. Any: they are of one class at run time, and of
#: another in the stubs.
SESSIONS: tuple[Any, ...] = tuple(
    service
    for module in (
        session_service_pb2,
        policy_service_pb2,
        checkpoint_service_pb2,
        agent_session_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)
#: The same of container_service.
CONTAINERS: tuple[Any, ...] = tuple(container_service_pb2.DESCRIPTOR.services_by_name.values())
