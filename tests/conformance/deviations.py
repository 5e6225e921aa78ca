"""The accepted differences of replies from Fly's OpenAPI document, each with its reason.

The reasons are observations of real clients: where they and the document differ, they count.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deviation:
    """A difference, as `schema.Document.differences` writes it, and why it is right."""

    pattern: str
    fact: str


DEVIATIONS = (
    Deviation(
        r"Machine version: unexpected",
        "the newer name of instance_id is in replies; the document has it for waits only",
    ),
    Deviation(
        r"Machine cordoned: unexpected",
        "Machine objects show it since 2026-07; the document is of 2026-05",
    ),
    Deviation(r"image_ref\.labels: type of null", "labels may be absent or null"),
    Deviation(
        r"(config\.)?services\.autostop: (type|enum) of bool",
        "read back as false, true or 'suspend', for clients older than the words",
    ),
    Deviation(
        r"Lease (status|data): unexpected",
        "docs, flyctl and live runs all have the lease in an envelope; the document draws it flat",
    ),
    Deviation(
        r"ErrorResponse (message|code): unexpected",
        "lease refusals have their text in `message`, with code `invalid`; fly-go reads it first",
    ),
    Deviation(
        r"main\.statusCode status: enum of str",
        "`error` in lease refusals; name_taken and volume_placement_capacity, which fly-go knows",
    ),
    Deviation(
        r"POST /apps 201: a body where none is documented",
        "id and created_at (docs), or with wait=true an App object, whose name flyctl uses",
    ),
    Deviation(
        r"POST /apps/\{app_name\}/machines/\{machine_id\}/start 200: a body .*",
        "previous_state, migrated, new_host (docs); an empty body breaks fly-go's Start",
    ),
    Deviation(
        r"POST /apps/\{app_name\}/machines/\{machine_id\}/"
        r"(stop|suspend|restart|signal|cordon|uncordon) 200: a body .*",
        '200 with {"ok": true} (docs)',
    ),
    Deviation(
        r"DELETE /apps/\{app_name\}/machines/\{machine_id\} 200: a body .*",
        '200 with {"ok": true} (docs)',
    ),
    Deviation(
        r"DELETE /apps/\{app_name\}/machines/\{machine_id\}/lease 200: a body .*",
        '200 with {"status": "success", "data": {"ok": true}} (docs)',
    ),
    Deviation(
        r"POST /apps/\{app_name\}/volumes/\{volume_id\}/snapshots 200: a body .*",
        '200 with {"Msg": {"backup": ...}} (docs); fly-go ignores it',
    ),
    Deviation(
        r"main\.(regionResponse (Regions|Nearest)|getPlacementsResponse Regions): unexpected",
        "seen in Go's spelling live, and read so by fly-go; the document has it in lower case",
    ),
)
