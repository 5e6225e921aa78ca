"""roost.session.v1.PolicyService: parse, call, render."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc.aio

from roost.session.v1 import policy_service_pb2 as pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceServicer
from session_service.domain.session import DEFAULT_TENANT
from session_service.rpc import policy_fields, policy_render

if TYPE_CHECKING:
    from session_service.lifecycle.policies import Policies

# Any: the generated base leaves the context's own parameters open.
Context = grpc.aio.ServicerContext[Any, Any]

#: Until calls are authenticated, everybody is of the one tenant.
TENANT = DEFAULT_TENANT


class PolicyServicer(PolicyServiceServicer):
    """Answers the contract; the work is the use cases'."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    async def GetProjectPolicy(
        self, request: pb.GetProjectPolicyRequest, context: Context
    ) -> pb.GetProjectPolicyResponse:
        """Read a project's policy."""
        project_id = policy_fields.parse_project(request)
        rules = await self._policies.project(TENANT, project_id)
        return pb.GetProjectPolicyResponse(project_policy=policy_render.project(project_id, rules))

    async def UpdateProjectPolicy(
        self, request: pb.UpdateProjectPolicyRequest, context: Context
    ) -> pb.UpdateProjectPolicyResponse:
        """Set a project's policy."""
        who, project_id, wanted, etag = policy_fields.parse_update(request, TENANT)
        rules = await self._policies.update(who, project_id, wanted, etag)
        return pb.UpdateProjectPolicyResponse(
            project_policy=policy_render.project(project_id, rules)
        )

    async def GetUserPreference(
        self, request: pb.GetUserPreferenceRequest, context: Context
    ) -> pb.GetUserPreferenceResponse:
        """Read what a user prefers."""
        project_id, user_id = policy_fields.parse_user(request)
        kept = await self._policies.preferred(TENANT, project_id, user_id)
        return pb.GetUserPreferenceResponse(
            user_preference=policy_render.preference(project_id, user_id, kept)
        )

    async def SetUserPreference(
        self, request: pb.SetUserPreferenceRequest, context: Context
    ) -> pb.SetUserPreferenceResponse:
        """Set what a user prefers."""
        who, project_id, user_id, wanted = policy_fields.parse_preference(request, TENANT)
        kept = await self._policies.prefer(who, project_id, user_id, wanted)
        return pb.SetUserPreferenceResponse(
            user_preference=policy_render.preference(project_id, user_id, kept)
        )
