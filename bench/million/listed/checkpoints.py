"""Checkpoints, their chunks, and volumes."""

from __future__ import annotations

from datetime import timedelta

from bench.million.listed.known import (
    AGE_OF_ALL,
    AGE_OF_NONE,
    APP,
    CHECKPOINT,
    CROWDED,
    DEFAULTS,
    FAILED,
    NOBODY,
    WRITING,
    WRITTEN_OF,
)
from bench.million.statements import Case, Lookup, case, statement, with_defaults

_UNKNOWN = case("unknown", checkpoint_id=NOBODY)
_BUSY = {"project_id": "nest", "user_id": "u0"}
_DELETING = (
    f"""UPDATE checkpoints SET state = 'DELETING' WHERE checkpoint_id = ({CHECKPOINT.sql})"""
)
_UNCLEAN = """UPDATE checkpoints SET state = 'DELETING' WHERE state = 'READY' AND session_id IN (
    SELECT session_id FROM sessions WHERE state = 'PAUSED' LIMIT least(10000, %(count)s / 20))"""
_DUE = "UPDATE volumes SET due_at = now() - interval '1 minute', create_time = create_time"
_VOLUME = Lookup("SELECT min(volume_id) FROM volumes")
_NAME = Lookup("SELECT min(name) FROM volumes")

LISTED = with_defaults(
    (
        statement("storage.checkpoint.reads:_GET", case(), _UNKNOWN),
        statement(
            "storage.checkpoint.reads:_NUMBERED", case(), case("unknown", number=99_999)
        ),
        statement(
            "storage.checkpoint.reads:_PAGE",
            case(below=2**63 - 1),
            Case("of a thousand", {**_BUSY, "below": 2**63 - 1}),
            case("none", below=2**63 - 1, user_id="nobody"),
        ),
        statement(
            "storage.checkpoint.reads:_HEAD_OF", case(), case("unknown", session_id=NOBODY)
        ),
        statement(
            "storage.checkpoint.reads:_OF_SESSION",
            case(head=CHECKPOINT),
            case("no head", head=None),
            case("a thousand", session_id=CROWDED, head=None),
            case("none", session_id=NOBODY, head=None),
        ),
        statement(
            "storage.checkpoint.reads:_KEPT",
            case(),
            Case("a thousand", _BUSY),
            case("none", user_id="nobody"),
        ),
        statement("storage.checkpoint.reads:_OF_DECISION"),
        statement("storage.checkpoint.reads:_PIN", case(pinned=True)),
        statement(
            "storage.checkpoint.write:_BEGIN",
            case(
                checkpoint_id=NOBODY, kind="APPLICATION", reason="STOP", label="", place="database"
            ),
            case(
                "changed meanwhile", epoch=1, checkpoint_id=NOBODY, kind="APPLICATION",
                reason="STOP", label="", place="database",
            ),
        ),
        statement("storage.checkpoint.write:_RENEW", case(checkpoint_id=WRITING), _UNKNOWN),
        statement(
            "storage.checkpoint.write:_MOVE", case(checkpoint_id=WRITING, place="s3", object="x")
        ),
        statement(
            "storage.checkpoint.write:_READY",
            case(
                checkpoint_id=WRITING, size_bytes=1, stored_bytes=1, sha256=bytes(32), answers=True
            ),
        ),
        statement("storage.checkpoint.write:_FAIL", case(checkpoint_id=WRITING, failure="X")),
        statement(
            "storage.checkpoint.write:_SUPERSEDE",
            case(session_id=WRITTEN_OF),
            case("none is written"),
        ),
        statement(
            "storage.checkpoint.write:_FAIL_EXPIRED",
            case("none", only=None),
            case("none of a session", only=WRITTEN_OF),
            case(
                "one",
                only=None,
                before=("UPDATE checkpoints SET lease_until = now() WHERE state = 'WRITING'",),
            ),
        ),
        statement("storage.checkpoint.write:_ANSWER", case(error="{}", free=True)),
        statement(
            "storage.checkpoint.write:_PUT", case(checkpoint_id=WRITING, number=0, bytes=bytes(99))
        ),
        statement("storage.checkpoint.write:_GET", case(number=0), case("none", number=99)),
        statement("storage.checkpoint.write:_DELETE", case(), _UNKNOWN),
        statement("storage.checkpoint.removal:_MARK_CORRUPT", case(), _UNKNOWN),
        statement("storage.checkpoint.removal:_LOCK", case(), _UNKNOWN),
        statement("storage.checkpoint.removal:_KEEP", case(), _UNKNOWN),
        statement(
            "storage.checkpoint.removal:_WITHDRAW",
            case(),
            case("failed", checkpoint_id=FAILED),
            case("of a key with a thousand", checkpoint_id=Lookup(
                f"SELECT checkpoint_id FROM checkpoints WHERE session_id = ({CROWDED.sql})"
                " AND number = 500"
            )),
            _UNKNOWN,
        ),
        statement("storage.checkpoint.removal:_REMOVE", case(before=(_DELETING,)), _UNKNOWN),
        statement(
            "storage.checkpoint.removal:_NOTE_CLEANED", case(checkpoint_id=FAILED), _UNKNOWN
        ),
        statement("storage.checkpoint.removal:_IS_NEEDED", case(), _UNKNOWN),
        statement(
            "storage.checkpoint.removal:_FIND_UNCLEANED",
            case(),
            case("thousands", before=(_UNCLEAN,)),
        ),
        statement(
            "storage.checkpoint.removal:_OLD_FAILURES",
            case("all", age=AGE_OF_ALL),
            case("none", age=AGE_OF_NONE),
        ),
        statement(
            "storage.checkpoint.volumes:_WANT",
            case(name="new"),
            case("again", name=_NAME),
        ),
        statement("storage.checkpoint.volumes:_NOTE", case(name=_NAME, volume_id="vol_x")),
        statement("storage.checkpoint.volumes:_REMOVE", case(name=_NAME), case("no", name="no")),
        statement(
            "storage.checkpoint.volumes:_CLAIM_DUE",
            case("none is due", settled=timedelta(0)),
            case("all are due", settled=timedelta(0), before=(_DUE,)),
        ),
        statement(
            "storage.checkpoint.volumes:_IS_MOUNTED",
            case(volume_id=_VOLUME),
            case("unknown", volume_id="vol_x"),
        ),
        statement(
            "storage.checkpoint.volumes:_SAVED",
            case(app=APP, volume_id=_VOLUME),
            case("unknown", app=APP, volume_id="vol_x"),
        ),
    ),
    DEFAULTS,
)  # fmt: skip
