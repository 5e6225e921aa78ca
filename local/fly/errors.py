"""The errors of the Machines API, with the texts that clients in the field match on."""


class ApiError(Exception):
    """A refusal: HTTP status, text and, where Fly gives one, the machine-readable `status`."""

    def __init__(self, http_status: int, text: str, code: str | None = None) -> None:
        super().__init__(text)
        self.http_status = http_status
        self.text = text
        self.code = code

    def body(self) -> dict[str, object]:
        """The error envelope; `status` is a string or absent, never a number."""
        body: dict[str, object] = {"error": self.text}
        return body | {"status": self.code} if self.code else body


class LeaseError(ApiError):
    """A refusal by the lease check; Fly wraps these in an envelope of their own."""

    def body(self) -> dict[str, object]:
        """The lease envelope, whose text is under `message`."""
        return {"status": "error", "message": self.text, "code": "invalid"}


class ConnectionDropped(Exception):
    """The client is to see its connection closed with no answer."""


def unauthenticated() -> ApiError:
    """No token, or not the one this emulator takes."""
    return ApiError(401, "Authenticate: token validation error")


def app_not_found() -> ApiError:
    """The app's name is free."""
    return ApiError(404, "app not found")


def machine_not_found() -> ApiError:
    """No machine of this id was ever made, or it is long gone."""
    return ApiError(404, "machine not found")


def lease_not_found() -> ApiError:
    """Nobody holds a lease; flyctl greps this text."""
    return ApiError(404, "lease not found")


def name_taken() -> ApiError:
    """An app of this name exists somewhere."""
    return ApiError(422, "Validation failed: Name has already been taken", "name_taken")


def name_violation(machine_id: str, name: str) -> ApiError:
    """A live machine of the app has the name."""
    return ApiError(
        409,
        "already_exists: unique machine name violation, "
        f'machine ID {machine_id} already exists with name "{name}"',
    )


def wrong_state(verb: str, state: str) -> ApiError:
    """The verb is not for machines in this state. Known from Fly for start; assumed for others."""
    text = f"failed_precondition: unable to {verb} machine from current state: '{state}'"
    return ApiError(412, text)


def still_starting() -> ApiError:
    """A second start came before the first was done."""
    return ApiError(409, "aborted: machine still attempting to start")


def already_started() -> ApiError:
    """A start of a started machine, where that is set to be a conflict; Fly's words not known."""
    return ApiError(409, "aborted: machine is already started")


def still_active() -> ApiError:
    """A start came while the host still held the last run."""
    return ApiError(412, "failed_precondition: machine still active, refusing to start")


def getting_replaced() -> ApiError:
    """A start came during an update."""
    return ApiError(412, "failed_precondition: machine getting replaced, refusing to start")


def not_destroyable() -> ApiError:
    """A running machine is only destroyed by force."""
    return ApiError(
        412,
        "failed_precondition: unable to destroy machine, "
        "not currently stopped, suspended, failed or created",
    )


def concurrent_update() -> ApiError:
    """A second update came before the first was done."""
    return ApiError(409, "aborted: machine update failed due to concurrent update")


def version_mismatch(wanted: str, current: str) -> ApiError:
    """An update was made from an older version; Fly's own words are not known."""
    return ApiError(409, f"aborted: current version is {current}, update expected {wanted}")


def wait_failed(wanted: str, actual: str) -> ApiError:
    """A wait ran out."""
    return ApiError(
        408,
        f"deadline_exceeded: machine failed to reach desired state, {wanted}, currently {actual}",
    )


def wait_out_of_range() -> ApiError:
    """A wait's timeout is refused, not clamped."""
    return ApiError(400, "invalid_argument: invalid timeout: value must be inside range [1s, 1m0s]")


def rate_limited() -> ApiError:
    """Too many requests for this action and identifier."""
    return ApiError(429, "rate limit exceeded")


def no_candidate_host() -> ApiError:
    """The region has no room for another machine."""
    return ApiError(422, "could not find a candidate host", "insufficient_capacity")


def host_full() -> ApiError:
    """The machine's own host has no room to run it."""
    return ApiError(
        409,
        "aborted: could not reserve resource for machine: "
        "insufficient memory available to fulfill request",
    )


def volume_not_found() -> ApiError:
    """No volume of this id was ever made, or it is long gone."""
    return ApiError(404, "volume not found")


def volume_claimed(machine_id: str) -> ApiError:
    """A machine is to mount a volume that another one has."""
    return ApiError(412, f"failed_precondition: volume already claimed by machine {machine_id}")


def volume_bound(machine_id: str) -> ApiError:
    """A volume is only deleted when no machine has it any more."""
    return ApiError(412, f"failed_precondition: volume is currently bound to machine: {machine_id}")


def snapshot_scheduled(at: str) -> ApiError:
    """A snapshot of the volume is being written."""
    return ApiError(412, f"failed_precondition: snapshot is already scheduled at {at}")


def no_room_for_volume() -> ApiError:
    """The region has no room for another volume."""
    return ApiError(412, "insufficient resources to create new volume")


def volume_host_full(volume_id: str) -> ApiError:
    """The host that has the volume has no room for a machine."""
    text = f"insufficient resources to create new machine with existing volume id '{volume_id}'"
    return ApiError(412, text, "volume_placement_capacity")


def lease_held(machine_id: str, owner: str, expires: str) -> LeaseError:
    """Somebody else holds the lease."""
    return LeaseError(
        409, f"machine ID {machine_id} lease currently held by {owner}, expires at {expires}"
    )


def stale_nonce(machine_id: str) -> LeaseError:
    """A mutation came with a nonce whose lease is over. Fly's own words are not known."""
    return LeaseError(409, f"machine ID {machine_id} lease not found for the given nonce")
