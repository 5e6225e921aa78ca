"""What the provider refuses, or does not say."""

from __future__ import annotations

from session_service.errors.base import Retryable, RoostError


class SuspendUnsupported(RoostError):
    """The provider cannot suspend this container; it runs on."""

    reason = "SUSPEND_UNSUPPORTED"


class SuspendFailedStillRunning(RoostError):
    """The pause failed after it was accepted; the container runs on."""

    reason = "SUSPEND_FAILED_STILL_RUNNING"


class ProviderRefused(RoostError):
    """The provider will not do it, also not when asked again."""

    reason = "PROVIDER_REFUSED"


class VolumeAbsent(ProviderRefused):
    """The provider knows no such volume, or no such snapshot. One observation, not yet proof."""


class ProviderCapacity(Retryable):
    """The provider has no room at present."""

    reason = "PROVIDER_CAPACITY"


class ProviderRateLimited(Retryable):
    """The provider's rate limit is used up."""

    reason = "PROVIDER_RATE_LIMITED"


class ProviderUnavailable(Retryable):
    """The provider did not answer, or not clearly; what stood before stands."""

    reason = "PROVIDER_UNAVAILABLE"


class VolumeInUse(ProviderUnavailable):
    """A container has the volume that the new one is to mount; the metadata's `container_id` names
    it, where the provider said. A claim outlives its container for a while.
    """
