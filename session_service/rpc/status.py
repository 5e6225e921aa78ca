"""Errors into gRPC statuses, by one table."""

from __future__ import annotations

from datetime import timedelta

import grpc
from google.rpc import error_details_pb2, status_pb2

from session_service import errors
from session_service.rpc.policy_render import choice_required

DOMAIN = "roost"
#: Trailing metadata has room for 8 KiB: what came from the caller or the provider is cut to fit.
_MESSAGE_LIMIT = 400
_VALUE_LIMIT = 200
_VIOLATION_LIMIT = 10

_Code = grpc.StatusCode

#: The most specific class that is listed counts.
TABLE: dict[type[errors.RoostError], grpc.StatusCode] = {
    errors.InvalidField: _Code.INVALID_ARGUMENT,
    errors.RequestIdReused: _Code.INVALID_ARGUMENT,
    errors.SessionNotFound: _Code.NOT_FOUND,
    errors.LiveSessionExists: _Code.ALREADY_EXISTS,
    errors.SessionStateConflict: _Code.FAILED_PRECONDITION,
    errors.ContinuityUnavailable: _Code.FAILED_PRECONDITION,
    errors.SuspendUnsupported: _Code.FAILED_PRECONDITION,
    errors.SuspendFailedStillRunning: _Code.FAILED_PRECONDITION,
    errors.ProviderRefused: _Code.FAILED_PRECONDITION,
    errors.EtagMismatch: _Code.ABORTED,
    errors.AgentSessionNotFound: _Code.NOT_FOUND,
    errors.AgentSessionExists: _Code.ALREADY_EXISTS,
    errors.AgentSessionExpired: _Code.FAILED_PRECONDITION,
    errors.TurnConflict: _Code.ABORTED,
    errors.CheckpointMissing: _Code.NOT_FOUND,
    errors.CheckpointNotReady: _Code.FAILED_PRECONDITION,
    errors.CheckpointCorrupt: _Code.DATA_LOSS,
    errors.CheckpointPinned: _Code.FAILED_PRECONDITION,
    errors.CheckpointInUse: _Code.FAILED_PRECONDITION,
    errors.CheckpointUnsupported: _Code.FAILED_PRECONDITION,
    errors.CheckpointTooLarge: _Code.RESOURCE_EXHAUSTED,
    errors.StateHookFailed: _Code.FAILED_PRECONDITION,
    errors.PolicyForbids: _Code.FAILED_PRECONDITION,
    errors.FingerprintChanged: _Code.FAILED_PRECONDITION,
    errors.ChoiceRequired: _Code.FAILED_PRECONDITION,
    errors.ChoiceTokenInvalid: _Code.INVALID_ARGUMENT,
    errors.ChoiceTokenExpired: _Code.FAILED_PRECONDITION,
    errors.ChoiceTokenUsed: _Code.FAILED_PRECONDITION,
    errors.ChoiceStale: _Code.FAILED_PRECONDITION,
    errors.ProviderCapacity: _Code.RESOURCE_EXHAUSTED,
    errors.ProviderRateLimited: _Code.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: _Code.RESOURCE_EXHAUSTED,
    errors.Retryable: _Code.UNAVAILABLE,
}


def code_of(error: errors.RoostError) -> grpc.StatusCode:
    """The error's gRPC code; INTERNAL for one that the table does not know."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return _Code.INTERNAL


def status_of(error: errors.RoostError) -> status_pb2.Status:
    """The whole status: code, sentence, ErrorInfo, and what the caller may do about it."""
    status = status_pb2.Status(
        code=code_of(error).value[0], message=shorten(error.message, _MESSAGE_LIMIT)
    )
    metadata = {key: shorten(value, _VALUE_LIMIT) for key, value in error.metadata.items()}
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    )
    if isinstance(error, errors.InvalidField):
        status.details.add().Pack(_bad_request(error))
    if isinstance(error, errors.ChoiceRequired):
        status.details.add().Pack(choice_required(error))
    if isinstance(error, errors.Retryable):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after))
        status.details.add().Pack(retry)
    return status


def shorten(text: str, limit: int) -> str:
    """Text of at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _bad_request(error: errors.InvalidField) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=shorten(violation.field, _VALUE_LIMIT),
                description=shorten(violation.description, _VALUE_LIMIT),
            )
            for violation in error.violations[:_VIOLATION_LIMIT]
        ]
    )
