"""The user's choice: asking, with a token for each candidate, and taking the answer."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain import choice, plans
from session_service.lifecycle import outcomes
from session_service.lifecycle.explaining import altered, decided
from session_service.storage import checkpoint_lists, choices, offers, sessions, waits
from session_service.storage.offers import NewToken

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.domain.choice import Candidate, Offered
    from session_service.domain.session import Key, Record
    from session_service.lifecycle.case import Case
    from session_service.storage.database import Database

#: What a user's answer can be refused with.
ANSWER_ERRORS = (
    errors.ChoiceTokenInvalid,
    errors.ChoiceTokenUsed,
    errors.ChoiceTokenExpired,
    errors.ChoiceStale,
)
#: Of randomness in a token: 32 bytes.
TOKEN_BYTES = 32


class Choosing:
    """Asks users, and takes their answers."""

    def __init__(self, database: Database, valid: timedelta) -> None:
        """`valid` is how long tokens count."""
        self._database = database
        self._valid = valid

    async def candidates(self, case: Case, record: Record) -> tuple[Candidate, ...]:
        """What could be done about a live session, and how long each is expected to take."""
        saved = await checkpoint_lists.kept(self._database, record.session.key)
        measured = await waits.by_outcome(self._database)
        return choice.candidates(record, measured, saved, case.recreation)

    async def ask(self, case: Case, plan: plans.Ask, record: Record) -> errors.ChoiceRequired:
        """Offer what there is to choose from. The error to answer with has the only copy of the
        tokens. The request id stays free: a repeat is asked anew, and the answer may come with it.
        """
        start, session = case.start, record.session
        found = await self.candidates(case, record)
        offered = [replace(each, token=secrets.token_urlsafe(TOKEN_BYTES)) for each in found]
        tokens = [
            NewToken(
                hashed(each.token),
                each.choice,
                session.session_id,
                session.start_count,
                each.expected,
                each.checkpoint_id,
            )
            for each in offered
        ]
        required = errors.ChoiceRequired(
            "the user is to choose: start again with a candidate's choice_token, or with a mode",
            offered,
        )
        request = replace(start.request, request_id=None)
        decision = altered(
            decided(start, plan, record),
            request=request,
            error=outcomes.dump(required),
            finished=True,
        )
        required.expire_time = await offers.offer(
            self._database, start.key, tokens, choice.dump(offered), self._valid, decision
        )
        required.metadata["decision_id"] = str(decision.decision_id)
        return required

    async def answered(self, case: Case) -> Case:
        """The case with its user's answer, where it came with one.

        Raises ChoiceTokenInvalid, ChoiceTokenUsed, ChoiceTokenExpired, ChoiceStale.
        """
        start = case.start
        if not start.token:
            return case.with_preference()
        token_hash = hashed(start.token)
        offered = await offers.find(self._database, token_hash)
        if offered is None or offered.key != start.key:
            raise errors.ChoiceTokenInvalid(
                "choice_token: no such token was offered here; start without one"
            )
        if offered.decision_id is not None:
            raise errors.ChoiceTokenUsed(
                "this answer was given already; start without a token to go on from there",
                {"chosen_decision_id": str(offered.decision_id), "choice": offered.choice},
            )
        if offered.expired:
            raise errors.ChoiceTokenExpired(
                "this answer came too late; start without a token to be asked anew"
            )
        # Of the key and not of the case: what was offered was what stood there.
        record = case.record
        stale = choice.gone_stale(offered, record, case.recreation)
        if stale is not None:
            raise await self._stale(offered, stale, start.key)
        return case.with_answer(offered, token_hash)

    async def _stale(self, offered: Offered, why: str, key: Key) -> errors.ChoiceStale:
        """What happened since it was offered, as far as is known."""
        metadata: dict[str, str] = {"choice": offered.choice}
        latest = await choices.latest(self._database, key)
        if latest is not None and latest.create_time >= offered.create_time:
            why += f": another answer was given meanwhile, {latest.choice}"
            metadata["chosen"] = latest.choice
            metadata["chosen_decision_id"] = str(latest.decision_id)
        live = await sessions.live_at(self._database, key)
        if live is not None:
            metadata["session_id"] = str(live.session.session_id)
        return errors.ChoiceStale(f"{why}. Start without a token to be asked anew", metadata)


def hashed(token: str) -> bytes:
    """What is kept of a token: enough to know it again."""
    return hashlib.sha256(token.encode()).digest()
