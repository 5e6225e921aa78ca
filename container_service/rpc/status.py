"""The table from errors to gRPC statuses, and the details of a status."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from container_service.containers import errors

DOMAIN = "roost"

#: gRPC allows 8 KiB of trailing metadata. Texts of the caller or the provider are cut to fit.
_MESSAGE_LIMIT = 400
_VIOLATION_LIMIT = 10
_METADATA_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Row:
    """A status code, and the reason in ErrorInfo."""

    code: grpc.StatusCode
    reason: str


_Code = grpc.StatusCode

#: An error gets the row of its most specific class in the table.
TABLE: dict[type[errors.ServiceError], Row] = {
    errors.InvalidRequest: Row(_Code.INVALID_ARGUMENT, "INVALID_FIELD"),
    errors.RequestIdReused: Row(_Code.INVALID_ARGUMENT, "REQUEST_ID_REUSED"),
    errors.ContainerNotFound: Row(_Code.NOT_FOUND, "CONTAINER_NOT_FOUND"),
    errors.VolumeNotFound: Row(_Code.NOT_FOUND, "VOLUME_NOT_FOUND"),
    errors.VolumeInUse: Row(_Code.FAILED_PRECONDITION, "VOLUME_IN_USE"),
    errors.SnapshotInProgress: Row(_Code.FAILED_PRECONDITION, "SNAPSHOT_IN_PROGRESS"),
    errors.StateConflict: Row(_Code.FAILED_PRECONDITION, "CONTAINER_STATE_CONFLICT"),
    errors.SuspendUnsupported: Row(_Code.FAILED_PRECONDITION, "SUSPEND_UNSUPPORTED"),
    errors.LeaseHeld: Row(_Code.ABORTED, "LEASE_HELD"),
    errors.LeaseLost: Row(_Code.ABORTED, "LEASE_LOST"),
    errors.WaitTimedOut: Row(_Code.DEADLINE_EXCEEDED, "WAIT_TIMED_OUT"),
    errors.StateHookFailed: Row(_Code.FAILED_PRECONDITION, "STATE_HOOK_FAILED"),
    errors.StateTooLarge: Row(_Code.RESOURCE_EXHAUSTED, "STATE_TOO_LARGE"),
    errors.StreamNotRead: Row(_Code.UNAVAILABLE, "STREAM_NOT_READ"),
    errors.ProviderUnavailable: Row(_Code.UNAVAILABLE, "PROVIDER_UNAVAILABLE"),
    errors.ProviderRateLimited: Row(_Code.RESOURCE_EXHAUSTED, "PROVIDER_RATE_LIMITED"),
    errors.ProviderCapacity: Row(_Code.RESOURCE_EXHAUSTED, "PROVIDER_CAPACITY"),
    errors.ProviderRefused: Row(_Code.FAILED_PRECONDITION, "PROVIDER_REFUSED"),
    # If the name is taken, CreateContainer adopts the container that has it. If that container
    # cannot be adopted yet, the error reaches the caller, and a retry can adopt it.
    errors.NameTaken: Row(_Code.UNAVAILABLE, "PROVIDER_UNAVAILABLE"),
}


def row_of(error: errors.ServiceError) -> Row:
    """The row of an error."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def status_of(error: errors.ServiceError) -> status_pb2.Status:
    """The status of an error: code, message, ErrorInfo, and BadRequest or RetryInfo."""
    row = row_of(error)
    status = status_pb2.Status(
        code=row.code.value[0], message=shorten(error.message, _MESSAGE_LIMIT)
    )
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN, metadata=metadata_of(error))
    )
    if isinstance(error, errors.InvalidRequest):
        status.details.add().Pack(_bad_request(error))
    if error.retry_after is not None:
        status.details.add().Pack(_retry_info(error.retry_after))
    return status


def metadata_of(error: errors.ServiceError) -> dict[str, str]:
    """The variable parts of an error, for programs."""
    metadata = dict(error.metadata)
    if error.provider_request_id:
        metadata["fly_request_id"] = error.provider_request_id
    return {key: shorten(value, _METADATA_LIMIT) for key, value in metadata.items()}


def shorten(text: str, limit: int) -> str:
    """The text, cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _bad_request(error: errors.InvalidRequest) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=shorten(violation.field, 120), description=shorten(violation.description, 120)
            )
            for violation in error.violations[:_VIOLATION_LIMIT]
        ]
    )


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    whole = int(seconds)
    delay = Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)
