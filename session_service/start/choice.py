"""The user's choice: the offer with a token for each candidate, and the answer with a token."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain import choice, plans
from session_service.storage.checkpoint import reads
from session_service.storage.session import choices
from session_service.storage.session import reads as session_reads
from session_service.storage.session.choices import NewToken
from session_service.transition import changes as transition_changes

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.domain.choice import Offered
    from session_service.domain.plans import Candidate
    from session_service.domain.session import Key, Record
    from session_service.start.facts import Facts
    from session_service.storage.database import Database

#: The errors with which a user's answer can be refused.
ANSWER_ERRORS = (
    errors.ChoiceTokenInvalid,
    errors.ChoiceTokenUsed,
    errors.ChoiceTokenExpired,
    errors.ChoiceStale,
)
#: The random bytes of a token.
TOKEN_BYTES = 32


class Choices:
    """Offers choices to users, and checks their answers."""

    def __init__(self, database: Database, valid: timedelta) -> None:
        """`valid` is how long tokens are valid."""
        self._database = database
        self._valid = valid

    async def candidates(self, facts: Facts, record: Record) -> tuple[Candidate, ...]:
        """The candidates for a live session, each with the time that it is expected to take."""
        saved = await reads.kept(self._database, record.session.key)
        measured = await choices.waits_by_outcome(self._database)
        return choice.candidates(record, measured, saved, facts.recreation)

    async def ask(self, facts: Facts, plan: plans.Ask, record: Record) -> errors.ChoiceRequired:
        """Commit an offer, and return the error that carries it. The error has the only copy of the
        tokens. The request id stays free: a repeat of the call gets a new offer, and the call with
        the answer may use the same request id.
        """
        start, session = facts.start, record.session
        found = await self.candidates(facts, record)
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
        decision = replace(
            facts.decision(plan),
            request=request,
            error=transition_changes.dump_error(required),
            finished=True,
        )
        required.expire_time = await choices.offer(
            self._database, start.key, tokens, choice.dump(offered), self._valid, decision
        )
        required.metadata["decision_id"] = str(decision.decision_id)
        return required

    async def answered(self, facts: Facts) -> Facts:
        """The facts with the user's answer, which the start's token names.

        Raises ChoiceTokenInvalid, ChoiceTokenUsed, ChoiceTokenExpired, ChoiceStale.
        """
        start = facts.start
        token_hash = hashed(start.token)
        offered = await choices.find_offer(self._database, token_hash)
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
                "this answer came too late; start without a token to be asked again"
            )
        record = facts.record
        stale = choice.gone_stale(offered, record, facts.recreation)
        if stale is not None:
            raise await self._stale(offered, stale, start.key)
        return facts.with_answer(offered, token_hash)

    async def _stale(self, offered: Offered, why: str, key: Key) -> errors.ChoiceStale:
        """The error of a stale answer. It names the answer that was given since the offer, and the
        live session at the key, if there are any.
        """
        metadata: dict[str, str] = {"choice": offered.choice}
        latest = await choices.latest(self._database, key)
        if latest is not None and latest.create_time >= offered.create_time:
            why += f": another answer was given meanwhile, {latest.choice}"
            metadata["chosen"] = latest.choice
            metadata["chosen_decision_id"] = str(latest.decision_id)
        live = await session_reads.live_at(self._database, key)
        if live is not None:
            metadata["session_id"] = str(live.session.session_id)
        return errors.ChoiceStale(f"{why}. Start without a token to be asked again", metadata)


def hashed(token: str) -> bytes:
    """The SHA-256 of a token, which is stored in its place."""
    return hashlib.sha256(token.encode()).digest()
