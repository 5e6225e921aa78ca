"""The errors of the Machines API, with the exact texts that existing clients match on."""


class ApiError(Exception):
    """An error answer: HTTP status, text and, where Fly has one, the machine-readable `status`."""

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
    """An error of the lease check; Fly renders these in an envelope of their own."""

    def body(self) -> dict[str, object]:
        """The lease envelope, with the text under `message`."""
        return {"status": "error", "message": self.text, "code": "invalid"}


class ConnectionDropped(Exception):
    """Raised to close the client's connection without an answer."""


def unauthenticated() -> ApiError:
    """The token is missing or not the one that the emulator accepts."""
    return ApiError(401, "Authenticate: token validation error")


def app_not_found() -> ApiError:
    """No app has this name."""
    return ApiError(404, "app not found")


def machine_not_found() -> ApiError:
    """No machine has this id."""
    return ApiError(404, "machine not found")


def lease_not_found() -> ApiError:
    """The machine has no lease. flyctl matches this text."""
    return ApiError(404, "lease not found")


def name_taken() -> ApiError:
    """An app of this name exists, in this or another organisation."""
    return ApiError(422, "Validation failed: Name has already been taken", "name_taken")


def name_violation(machine_id: str, name: str) -> ApiError:
    """A live machine of the app has this name."""
    return ApiError(
        409,
        "already_exists: unique machine name violation, "
        f'machine ID {machine_id} already exists with name "{name}"',
    )


def wrong_state(verb: str, state: str) -> ApiError:
    """The verb is not allowed in this state. Fly's text for start; assumed for the others."""
    text = f"failed_precondition: unable to {verb} machine from current state: '{state}'"
    return ApiError(412, text)


def still_starting() -> ApiError:
    """A start while another start is in progress."""
    return ApiError(409, "aborted: machine still attempting to start")


def already_started() -> ApiError:
    """A start of a started machine, if `start_on_started` is `conflict`. Fly's text is unknown."""
    return ApiError(409, "aborted: machine is already started")


def still_active() -> ApiError:
    """A start while the host still holds the previous run."""
    return ApiError(412, "failed_precondition: machine still active, refusing to start")


def getting_replaced() -> ApiError:
    """A start during an update."""
    return ApiError(412, "failed_precondition: machine getting replaced, refusing to start")


def not_destroyable() -> ApiError:
    """A destroy of a running machine without `force`."""
    return ApiError(
        412,
        "failed_precondition: unable to destroy machine, "
        "not currently stopped, suspended, failed or created",
    )


def concurrent_update() -> ApiError:
    """An update while another update is in progress."""
    return ApiError(409, "aborted: machine update failed due to concurrent update")


def version_mismatch(wanted: str, current: str) -> ApiError:
    """An update that expects an older version. Fly's text is unknown."""
    return ApiError(409, f"aborted: current version is {current}, update expected {wanted}")


def wait_failed(wanted: str, actual: str) -> ApiError:
    """A wait reached its timeout."""
    return ApiError(
        408,
        f"deadline_exceeded: machine failed to reach desired state, {wanted}, currently {actual}",
    )


def wait_out_of_range() -> ApiError:
    """A wait's timeout is out of range: Fly rejects it instead of clamping it."""
    return ApiError(400, "invalid_argument: invalid timeout: value must be inside range [1s, 1m0s]")


def rate_limited() -> ApiError:
    """The rate limit for this action and identifier is exceeded."""
    return ApiError(429, "rate limit exceeded")


def no_candidate_host() -> ApiError:
    """The region has no capacity for another machine."""
    return ApiError(422, "could not find a candidate host", "insufficient_capacity")


def host_full() -> ApiError:
    """The machine's own host has no capacity to run it."""
    return ApiError(
        409,
        "aborted: could not reserve resource for machine: "
        "insufficient memory available to fulfill request",
    )


def volume_not_found() -> ApiError:
    """No volume has this id, or it was deleted more than a day ago."""
    return ApiError(404, "volume not found")


def volume_claimed(machine_id: str) -> ApiError:
    """A machine requests a volume that another machine claims."""
    return ApiError(412, f"failed_precondition: volume already claimed by machine {machine_id}")


def volume_bound(machine_id: str) -> ApiError:
    """A delete of a volume that a machine claims."""
    return ApiError(412, f"failed_precondition: volume is currently bound to machine: {machine_id}")


def snapshot_scheduled(at: str) -> ApiError:
    """A snapshot while another one is being written."""
    return ApiError(412, f"failed_precondition: snapshot is already scheduled at {at}")


def no_room_for_volume() -> ApiError:
    """The region has no capacity for another volume."""
    return ApiError(412, "insufficient resources to create new volume")


def volume_host_full(volume_id: str) -> ApiError:
    """The volume's host has no capacity for a machine."""
    text = f"insufficient resources to create new machine with existing volume id '{volume_id}'"
    return ApiError(412, text, "volume_placement_capacity")


def lease_held(machine_id: str, owner: str, expires: str) -> LeaseError:
    """Another owner holds the lease."""
    return LeaseError(
        409, f"machine ID {machine_id} lease currently held by {owner}, expires at {expires}"
    )


def stale_nonce(machine_id: str) -> LeaseError:
    """A mutation with the nonce of a lease that has ended. Fly's text is unknown."""
    return LeaseError(409, f"machine ID {machine_id} lease not found for the given nonce")
