"""What cannot be saved, or not brought back."""

from __future__ import annotations

from session_service.errors.base import RoostError


class CheckpointMissing(RoostError):
    """No such checkpoint, or none that this tenant may see, or it was deleted."""

    reason = "CHECKPOINT_MISSING"


class CheckpointNotReady(RoostError):
    """It is still being written, or it never came to be."""

    reason = "CHECKPOINT_NOT_READY"


class CheckpointCorrupt(RoostError):
    """What is stored of the checkpoint is not what was saved."""

    reason = "CHECKPOINT_CORRUPT"


class CheckpointPinned(RoostError):
    """It is pinned, and so not deleted."""

    reason = "CHECKPOINT_PINNED"


class CheckpointInUse(RoostError):
    """A session could not come back without it."""

    reason = "CHECKPOINT_IN_USE"


class CheckpointUnsupported(RoostError):
    """The container's spec says no way to its state."""

    reason = "CHECKPOINT_UNSUPPORTED"


class CheckpointTooLarge(RoostError):
    """The state is larger than what is kept of one."""

    reason = "CHECKPOINT_TOO_LARGE"


class StateHookFailed(RoostError):
    """The application did not hand its state out, or did not take it; the message has its words."""

    reason = "STATE_HOOK_FAILED"
