"""roost.session.v1.PolicyService: each method parses, calls a use case and renders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc.aio

from roost.session.v1 import policy_service_pb2 as pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceServicer
from session_service.domain.session import DEFAULT_TENANT
from session_service.rpc.policy import parse, render

if TYPE_CHECKING:
    from session_service.policy.service import PolicyService

# Any: the generated base class does not bind the type parameters of the context.
Context = grpc.aio.ServicerContext[Any, Any]

#: Calls are not authenticated: there is one tenant.
TENANT = DEFAULT_TENANT


class PolicyServicer(PolicyServiceServicer):
    """The service's methods. Their semantics are in the comments of the proto."""

    def __init__(self, policies: PolicyService) -> None:
        self._policies = policies

    async def GetProjectPolicy(
        self, request: pb.GetProjectPolicyRequest, context: Context
    ) -> pb.GetProjectPolicyResponse:
        """Read a project's policy."""
        project_id = parse.parse_project(request)
        rules = await self._policies.project(TENANT, project_id)
        return pb.GetProjectPolicyResponse(project_policy=render.project(project_id, rules))

    async def UpdateProjectPolicy(
        self, request: pb.UpdateProjectPolicyRequest, context: Context
    ) -> pb.UpdateProjectPolicyResponse:
        """Set a project's policy."""
        parsed = parse.parse_update(request, TENANT)
        rules = await self._policies.update(*parsed)
        return pb.UpdateProjectPolicyResponse(
            project_policy=render.project(request.project_id, rules)
        )

    async def GetUserPreference(
        self, request: pb.GetUserPreferenceRequest, context: Context
    ) -> pb.GetUserPreferenceResponse:
        """Read a user's preference."""
        project_id, user_id = parse.parse_user(request)
        stored = await self._policies.preference(TENANT, project_id, user_id)
        return pb.GetUserPreferenceResponse(
            user_preference=render.preference(project_id, user_id, stored)
        )

    async def SetUserPreference(
        self, request: pb.SetUserPreferenceRequest, context: Context
    ) -> pb.SetUserPreferenceResponse:
        """Set a user's preference."""
        body, project_id, user_id, wanted = parse.parse_preference(request, TENANT)
        stored = await self._policies.set_preference(body, project_id, user_id, wanted)
        return pb.SetUserPreferenceResponse(
            user_preference=render.preference(project_id, user_id, stored)
        )
