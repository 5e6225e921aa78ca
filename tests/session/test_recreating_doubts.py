"""A recreate whose note, that the old container may be destroyed, is lost with its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.session.v1 import session_pb2 as pb
from tests.container.harness import failing
from tests.session.harness import world
from tests.session.saving import counting, execute, hooked

if TYPE_CHECKING:
    from local.fly.emulator import Emulator

#: The connection of that note is cut, so that the replica does not know whether it was committed.
CUT = (
    """
    CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$
    """,
    """
    CREATE TRIGGER cut BEFORE UPDATE ON containers FOR EACH ROW
    WHEN (OLD.wanted AND NOT NEW.wanted) EXECUTE FUNCTION cut()
    """,
)


async def test_a_container_that_may_be_destroyed_already_is_not_given_back(
    emulator: Emulator, database_url: str
) -> None:
    """If the note was committed, any replica may destroy the container of an ACTIVE session. The
    transition stays open, and its next owner reads what is true.
    """
    async with world(emulator, database_url, on_fingerprint_change="recreate_keeping_files") as at:
        session = await counting(at, 2, A="1")
        for statement in CUT:
            execute(database_url, statement)
        failure = await failing(at.one.start(spec=hooked(A="2")))
        assert failure.reason == "STORAGE_UNAVAILABLE"
        assert (await at.two.get(session.session_id)).state == pb.Session.STATE_STARTING
        execute(database_url, "DROP TRIGGER cut ON containers")
        # The note was not committed here: the container is still the session's, and has its state.
        again = await at.two.start(spec=hooked(A="2"))
        assert await at.counter(again.session) == "2"
        answer = await at.two.start(spec=hooked(A="2"))
        assert answer.outcome == pb.START_OUTCOME_RESTORED
        assert await at.counter(answer.session) == "2"
        assert await at.in_guest(answer.session, "sh", "-c", "echo $A") == "2\n"
