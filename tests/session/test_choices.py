"""Policy ASK: the user is offered candidates; one answer counts; another tab gets CHOICE_STALE."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.rpc import status_pb2

from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from session_service.domain.stats import Preferred, Span
from session_service.reconcile import retention
from session_service.storage.session import stats
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.harness import TIMEOUT, World, key, request_id, world
from tests.session.saving import client, counting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from local.fly.emulator import Emulator

ASK = pb.Policy.PERSISTENCE_ASK
CONTINUE, RESTORE, FRESH = (
    rpc_pb.CHOICE_CONTINUE,
    rpc_pb.CHOICE_RESTORE,
    rpc_pb.CHOICE_FRESH,
)


@pytest.fixture
async def asking(roost: World) -> AsyncIterator[World]:
    """A Roost whose project's policy is ASK."""
    await ask(roost)
    yield roost


@pytest.fixture
async def short_budget(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """The same, with a short start budget; the provider's outage is noticed before its end."""
    budget = timedelta(seconds=10)
    async with world(emulator, database_url, start_budget=budget) as running:
        await ask(running)
        yield running


async def ask(roost: World) -> None:
    """Set the project's policy to ASK."""
    request = policy_pb.UpdateProjectPolicyRequest(
        project_id="nest", policy=pb.Policy(persistence=ASK)
    )
    await policies(roost).UpdateProjectPolicy(request, timeout=TIMEOUT)


def policies(roost: World) -> PolicyServiceStub:
    """A client of the first replica's policies."""
    return PolicyServiceStub(roost.one.channel)


def detail(error: grpc.aio.AioRpcError) -> rpc_pb.ChoiceRequired:
    """The ChoiceRequired detail of the error."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            for packed in status_pb2.Status.FromString(value).details:
                found = rpc_pb.ChoiceRequired()
                if packed.Unpack(found):
                    return found
    raise AssertionError(f"no ChoiceRequired in {error}")


async def offered(call: Awaitable[object]) -> dict[int, rpc_pb.Candidate]:
    """The candidates of a start that fails with CHOICE_REQUIRED, by their choice."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION, caught.value
    found = detail(caught.value)
    assert found.expire_time.ToDatetime(UTC) > datetime.now(UTC)
    return {each.choice: each for each in found.candidates}


async def rows(roost: World, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query. Any: columns of every type."""
    async with roost.one.running.database.connection() as connection:
        return await (await connection.execute(query)).fetchall()


# --- asking ------------------------------------------------------------------------------------


async def test_a_key_without_sessions_is_not_asked_about(asking: World) -> None:
    """There is nothing to choose: a session is created and no choice is recorded."""
    assert (await asking.one.start()).outcome == pb.START_OUTCOME_CREATED
    assert await rows(asking, "SELECT * FROM choices") == []


async def test_a_paused_session_is_offered_beside_a_fresh_one(asking: World) -> None:
    """A candidate has an age, a continuity, an estimated wait and a token."""
    session = (await asking.one.start()).session
    await asking.one.stop(session.session_id)
    await asking.one.start(mode=pb.START_MODE_CONTINUE)
    await asking.one.stop(session.session_id)
    before = await asking.one.get(session.session_id)
    failure = await failing(asking.two.start())
    assert failure.reason == "CHOICE_REQUIRED"
    found = await offered(asking.two.start())
    assert list(found) == [CONTINUE, FRESH]
    continued, fresh_one = found[CONTINUE], found[FRESH]
    assert (continued.session_id, continued.rung) == (session.session_id, pb.RUNG_RESUME)
    assert continued.expected_continuity == pb.CONTINUITY_MEMORY
    assert continued.age.ToTimedelta() > timedelta(0)
    assert (fresh_one.session_id, fresh_one.rung) == ("", pb.RUNG_CREATE)
    assert fresh_one.expected_continuity == pb.CONTINUITY_NONE
    took = {d.outcome: d.milliseconds for d in await asking.one.decisions(session.session_id)}
    assert abs(fresh_one.expected_wait_milliseconds - took[pb.START_OUTCOME_CREATED]) <= 1
    assert abs(continued.expected_wait_milliseconds - took[pb.START_OUTCOME_RESUMED]) <= 1
    assert len({continued.choice_token, fresh_one.choice_token}) == 2
    assert min(len(each.choice_token) for each in found.values()) >= 22, "128 bits at least"
    assert await asking.one.get(session.session_id) == before, "asking changes nothing"


async def test_a_wait_that_was_never_measured_is_unset(asking: World) -> None:
    """Without a measured restart the field is unset, not 0."""
    session = (await asking.one.start()).session
    await asking.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    found = await offered(asking.one.start())
    assert found[CONTINUE].rung == pb.RUNG_RESTART
    assert not found[CONTINUE].HasField("expected_wait_milliseconds")
    assert found[FRESH].HasField("expected_wait_milliseconds")


async def test_a_running_session_is_asked_about_too_and_a_named_mode_answers(
    asking: World,
) -> None:
    """Also within the freshness window. A start with mode CONTINUE is not asked."""
    session = (await asking.one.start()).session
    found = await offered(asking.two.start())
    assert found[CONTINUE].rung == pb.RUNG_LIVE
    again = await asking.two.start(mode=pb.START_MODE_CONTINUE)
    assert (again.outcome, again.session.session_id) == (
        pb.START_OUTCOME_REUSED,
        session.session_id,
    )
    assert (await asking.one.resume(session.session_id)).outcome == pb.START_OUTCOME_REUSED
    assert await rows(asking, "SELECT * FROM choices") == []


async def test_being_asked_frees_the_request_id_for_the_answer(asking: World) -> None:
    """The same id is asked again, and then answers; each question has its decision."""
    await asking.one.start()
    once = request_id()
    first = await offered(asking.one.start(request_id=once))
    second = await offered(asking.two.start(request_id=once))
    assert first[CONTINUE].choice_token != second[CONTINUE].choice_token
    answer = await asking.two.start(request_id=once, choice_token=first[CONTINUE].choice_token)
    decisions = await asking.one.decisions(answer.session.session_id)
    assert [d.error_reason for d in decisions].count("CHOICE_REQUIRED") == 2


# --- answering ---------------------------------------------------------------------------------


async def test_an_answer_carries_the_choice_out_once(asking: World) -> None:
    """CONTINUE brings the counter back; the token counts once; a replay has the same answer."""
    session = (await asking.one.start()).session
    await asking.click_twice(session)
    await asking.one.stop(session.session_id)
    token = (await offered(asking.one.start()))[CONTINUE].choice_token
    once = request_id()
    answer = await asking.one.start(request_id=once, choice_token=token)
    assert (answer.outcome, answer.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
    )
    assert await asking.counter(answer.session) == "2"
    again = await asking.two.start(request_id=once, choice_token=token)
    assert (again.decision_id, again.outcome) == (answer.decision_id, answer.outcome)
    failure = await failing(asking.two.start(choice_token=token))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CHOICE_TOKEN_USED",
    )
    assert failure.metadata["choice"] == "CONTINUE"
    assert failure.metadata["chosen_decision_id"] == answer.decision_id
    made = await rows(asking, "SELECT choice, asked, remember, decision_id::text FROM choices")
    assert made == [("CONTINUE", True, False, answer.decision_id)]


async def test_a_fresh_answer_replaces_the_live_session(asking: World) -> None:
    """The new session names its predecessor."""
    session = (await asking.one.start()).session
    await asking.click_twice(session)
    token = (await offered(asking.two.start()))[FRESH].choice_token
    fresh = await asking.two.start(choice_token=token)
    assert fresh.outcome == pb.START_OUTCOME_CREATED
    assert fresh.session.predecessor_session_id == session.session_id
    assert await asking.counter(fresh.session) == "0"


@pytest.mark.parametrize("choice", [CONTINUE, FRESH])
async def test_one_token_used_by_many_at_once_counts_once(asking: World, choice: int) -> None:
    """Of ten calls at two replicas one succeeds, nine get CHOICE_TOKEN_USED. With CONTINUE of an
    ACTIVE session only the token decides between them: such a start needs no transition.
    """
    await asking.one.start()
    token = (await offered(asking.one.start()))[choice].choice_token
    calls = [asking.replicas[n % 2].start(choice_token=token) for n in range(10)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    won = [each for each in answers if not isinstance(each, BaseException)]
    assert len(won) == 1
    assert await asking.committed("create") == (2 if choice == FRESH else 1)
    assert len(await rows(asking, "SELECT * FROM choices")) == 1


@pytest.mark.parametrize("first", [CONTINUE, FRESH])
async def test_of_two_tabs_with_different_answers_one_wins_and_the_other_learns_the_choice(
    asking: World, first: int
) -> None:
    """The second gets CHOICE_STALE, with the winner's choice and decision."""
    session = (await asking.one.start()).session
    await asking.one.stop(session.session_id)
    one, two = await offered(asking.one.start()), await offered(asking.two.start())
    other = FRESH if first == CONTINUE else CONTINUE
    won = await asking.one.start(choice_token=one[first].choice_token)
    failure = await failing(asking.two.start(choice_token=two[other].choice_token))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CHOICE_STALE",
    )
    assert failure.metadata["chosen"] == rpc_pb.Choice.Name(first).removeprefix("CHOICE_")  # type: ignore[arg-type]
    assert failure.metadata["chosen_decision_id"] == won.decision_id
    assert failure.metadata["session_id"] == won.session.session_id
    assert (await asking.two.get(won.session.session_id)).state == pb.Session.STATE_ACTIVE


async def test_two_tabs_that_race_never_both_win(asking: World) -> None:
    """CONTINUE and FRESH at the same time, repeatedly: one wins each time."""
    for round_ in range(4):
        user = f"racer{round_}"
        session = (await asking.one.start(user)).session
        await asking.one.stop(session.session_id)
        one, two = await offered(asking.one.start(user)), await offered(asking.two.start(user))
        answers = await asyncio.gather(
            asking.one.start(user, choice_token=one[CONTINUE].choice_token),
            asking.two.start(user, choice_token=two[FRESH].choice_token),
            return_exceptions=True,
        )
        lost = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert len(lost) == 1, answers
        live = await asking.until_live(user)
        chosen = await rows(asking, f"SELECT choice FROM choices WHERE user_id = '{user}'")
        continued = live.session_id == session.session_id
        assert chosen == [("CONTINUE" if continued else "FRESH",)]


async def test_two_tabs_that_both_continue_both_succeed(asking: World) -> None:
    """Both get the continuity that they were offered."""
    session = (await asking.one.start()).session
    await asking.one.stop(session.session_id)
    one, two = await offered(asking.one.start()), await offered(asking.two.start())
    answers = await asyncio.gather(
        asking.one.start(choice_token=one[CONTINUE].choice_token),
        asking.two.start(choice_token=two[CONTINUE].choice_token),
    )
    assert {each.session.session_id for each in answers} == {session.session_id}
    assert await asking.committed("create") == 1


async def test_a_candidate_with_less_continuity_than_offered_is_stale(asking: World) -> None:
    """It was offered with its memory, and was stopped in the meantime."""
    session = (await asking.one.start()).session
    await asking.one.stop(session.session_id)
    token = (await offered(asking.one.start()))[CONTINUE].choice_token
    await asking.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    failure = await failing(asking.one.start(choice_token=token))
    assert failure.reason == "CHOICE_STALE"
    assert "less than was offered" in failure.message


async def test_a_candidate_that_has_ended_is_stale(asking: World) -> None:
    """It ended between the question and the answer; no session is created in its place."""
    session = (await asking.one.start()).session
    found = await offered(asking.one.start())
    await asking.one.end(session.session_id)
    for choice in (CONTINUE, FRESH):
        failure = await failing(asking.one.start(choice_token=found[choice].choice_token))
        assert failure.reason == "CHOICE_STALE"
        assert "ended" in failure.message
    assert await asking.committed("create") == 1


async def test_a_token_is_valid_for_its_user_key_and_tenant_alone(asking: World) -> None:
    """Another user's, another slot's and an invented token all get CHOICE_TOKEN_INVALID."""
    await asking.one.start()
    await asking.one.start("crane")
    token = (await offered(asking.one.start()))[CONTINUE].choice_token
    elsewhere = rpc_pb.StartSessionRequest(key=key(slot="other"), choice_token=token)
    for call in (
        asking.one.start("crane", choice_token=token),
        asking.one.stub.StartSession(elsewhere, timeout=TIMEOUT),
        asking.one.start(choice_token="x" * 43),
    ):
        failure = await failing(call)
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "CHOICE_TOKEN_INVALID",
        )
    assert (await asking.one.start(choice_token=token)).outcome == pb.START_OUTCOME_REUSED


async def test_a_token_expires(emulator: Emulator, database_url: str) -> None:
    """CHOICE_TOKEN_EXPIRED for a day; then CHOICE_TOKEN_INVALID, as for an unknown token."""
    short = timedelta(seconds=0.1)
    async with world(
        emulator, database_url, replicas=1, persistence="ask", choice_expiry=short
    ) as roost:
        await roost.one.start()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await roost.one.start()
        token = detail(caught.value).candidates[0].choice_token

        async def expired() -> bool:
            found = await rows(roost, "SELECT bool_and(expire_time <= now()) FROM choice_tokens")
            return bool(found[0][0])

        assert await eventually(expired)
        failure = await failing(roost.one.start(choice_token=token))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "CHOICE_TOKEN_EXPIRED",
        )
        async with roost.one.running.database.connection() as connection:
            await connection.execute(
                "UPDATE choice_tokens SET expire_time = now() - interval '2 days'"
            )
        kept = timedelta(days=1)
        await retention.run_pass(roost.one.running.database, kept, kept)
        assert (await failing(roost.one.start(choice_token=token))).reason == (
            "CHOICE_TOKEN_INVALID"
        )


async def test_tokens_are_in_the_answer_and_nowhere_else(
    asking: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in DEBUG logs, decisions or the database; the database has only their SHA-256."""
    caplog.set_level("DEBUG")
    session = (await asking.one.start()).session
    found = await offered(asking.one.start())
    tokens = [each.choice_token for each in found.values()]
    await asking.one.start(choice_token=tokens[0])
    await failing(asking.one.start(choice_token=tokens[0]))
    written = (
        caplog.text + str(capsys.readouterr()) + str(await asking.one.decisions(session.session_id))
    )
    for table in ("choice_tokens", "choices", "decisions", "sessions", "session_events"):
        written += str(await rows(asking, f"SELECT row_to_json(t)::text FROM {table} t"))
    for token in tokens:
        assert token not in written
        assert hashlib.sha256(token.encode()).hexdigest() in written


async def test_an_answer_whose_start_failed_with_a_retriable_error_can_be_repeated(
    short_budget: World,
) -> None:
    """Such a failure frees the token and the request id; the answer still counts once."""
    session = (await short_budget.one.start()).session
    await short_budget.one.stop(session.session_id)
    token = (await offered(short_budget.one.start()))[FRESH].choice_token
    once = request_id()
    await short_budget.admin.set_fault("server_error", action="create", times=None)
    failure = await failing(short_budget.one.start(request_id=once, choice_token=token))
    assert failure.retry_seconds is not None
    await short_budget.admin.clear_faults()
    answer = await short_budget.two.start(request_id=once, choice_token=token)
    assert answer.outcome == pb.START_OUTCOME_CREATED
    assert len(await rows(short_budget, "SELECT * FROM choices")) == 1


async def test_a_token_with_a_mode_names_the_field(asking: World) -> None:
    """The token already names the choice."""
    failure = await failing(asking.one.start(choice_token="x", mode=pb.START_MODE_FRESH))
    assert failure.fields == ("mode",)


async def test_a_checkpoint_can_be_chosen(asking: World) -> None:
    """It is a third candidate, with its number. The answer saves the present state and restores the
    checkpoint's count. The next question offers to continue from there.
    """
    session = await counting(asking, 2)
    saved = await client(asking.one).create(session.session_id)
    await asking.counter(session, "/click")
    found = await offered(asking.two.start())
    assert list(found) == [CONTINUE, RESTORE, FRESH]
    restore = found[RESTORE]
    assert (restore.checkpoint_id, restore.checkpoint_number) == (saved.checkpoint_id, 1)
    assert (restore.rung, restore.expected_continuity) == (
        pb.RUNG_RESTORE,
        pb.CONTINUITY_CHECKPOINT,
    )
    assert restore.age.ToTimedelta() > timedelta(0)
    back = await asking.two.start(choice_token=restore.choice_token)
    assert (back.outcome, back.continuity) == (
        pb.START_OUTCOME_RESTORED,
        pb.CONTINUITY_CHECKPOINT,
    )
    assert back.session.session_id == session.session_id
    assert await asking.counter(back.session) == "2"
    made = await rows(asking, "SELECT choice, checkpoint_id::text FROM choices")
    assert made == [("RESTORE", saved.checkpoint_id)]
    numbers = [
        each.checkpoint_number
        for each in (await offered(asking.one.start())).values()
        if each.choice == RESTORE
    ]
    assert numbers, "the state before the rollback can be restored"


async def test_a_rollback_is_stale_if_the_session_was_used_in_the_meantime(
    asking: World,
) -> None:
    """Another tab continued the session: a rollback would lose its work."""
    session = await counting(asking, 2)
    await client(asking.one).create(session.session_id)
    token = (await offered(asking.two.start()))[RESTORE].choice_token
    await asking.one.start(mode=pb.START_MODE_CONTINUE)
    failure = await failing(asking.two.start(choice_token=token))
    assert failure.reason == "CHOICE_STALE"
    assert "started meanwhile" in failure.message


# --- preferences -------------------------------------------------------------------------------


async def preferred(roost: World) -> policy_pb.UserPreference:
    """GetUserPreference of wren."""
    request = policy_pb.GetUserPreferenceRequest(project_id="nest", user_id="wren")
    answer = await policies(roost).GetUserPreference(request, timeout=TIMEOUT)
    return answer.user_preference


async def prefer(roost: World, preference: policy_pb.Preference.ValueType) -> None:
    """SetUserPreference of wren."""
    request = policy_pb.SetUserPreferenceRequest(
        project_id="nest", user_id="wren", preference=preference
    )
    answer = await policies(roost).SetUserPreference(request, timeout=TIMEOUT)
    assert answer.user_preference.preference == preference


@pytest.mark.parametrize(
    ("choice", "kept", "outcome"),
    [
        (CONTINUE, policy_pb.PREFERENCE_AUTO_RESUME, pb.START_OUTCOME_REUSED),
        (FRESH, policy_pb.PREFERENCE_ALWAYS_FRESH, pb.START_OUTCOME_CREATED),
    ],
)
async def test_a_remembered_answer_decides_the_next_start(
    asking: World, choice: int, kept: int, outcome: int
) -> None:
    """That user of that project is not asked again; each start records its choice."""
    await asking.one.start()
    assert (await preferred(asking)).preference == policy_pb.PREFERENCE_UNSPECIFIED
    token = (await offered(asking.one.start()))[choice].choice_token
    await asking.one.start(choice_token=token, remember=True)
    found = await preferred(asking)
    assert found.preference == kept
    assert found.HasField("update_time")
    assert (await asking.two.start()).outcome == outcome
    made = await rows(asking, "SELECT asked, remember FROM choices ORDER BY decision_id")
    assert made == [(True, True), (False, False)]
    await asking.one.start("crane")
    assert await offered(asking.one.start("crane")), "another user is still asked"


async def test_a_preference_can_be_set_and_reset(asking: World) -> None:
    """PREFERENCE_ASK makes the user asked again; unknown values are rejected."""
    await asking.one.start()
    await prefer(asking, policy_pb.PREFERENCE_ALWAYS_FRESH)
    assert (await asking.one.start()).outcome == pb.START_OUTCOME_CREATED
    await prefer(asking, policy_pb.PREFERENCE_ASK)
    assert await offered(asking.one.start())
    for value in (0, 9):
        request = policy_pb.SetUserPreferenceRequest(
            project_id="nest",
            user_id="wren",
            preference=value,  # type: ignore[arg-type]
        )
        failure = await failing(policies(asking).SetUserPreference(request, timeout=TIMEOUT))
        assert failure.fields == ("preference",)


async def test_a_preference_has_no_effect_without_policy_ask(roost: World) -> None:
    """HIBERNATE resumes, whatever the user's preference is."""
    session = (await roost.one.start()).session
    await prefer(roost, policy_pb.PREFERENCE_ALWAYS_FRESH)
    assert (await roost.one.start()).session.session_id == session.session_id


async def test_asked_and_remembered_choices_are_counted_apart(asking: World) -> None:
    """The ratio of new to continued sessions counts only the users that were asked."""
    await asking.one.start()
    for choice in (CONTINUE, CONTINUE, FRESH):
        token = (await offered(asking.one.start()))[choice].choice_token
        await asking.one.start(choice_token=token)
    await prefer(asking, policy_pb.PREFERENCE_AUTO_RESUME)
    await asking.one.start()
    now = datetime.now(UTC)
    span = (now - timedelta(hours=1), now + timedelta(hours=1))
    database = asking.one.running.database
    for project, expected in (
        ("nest", Preferred(2, 1, 1, 0)),
        (None, Preferred(2, 1, 1, 0)),
        ("other", Preferred()),
    ):
        counted = await stats.count(database, Span("default", project, *span))
        assert counted.preferred == expected, project


# --- preview -----------------------------------------------------------------------------------


async def everything(roost: World) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the tables of sessions and policies, with its row version. Any: text."""
    tables = (
        *("sessions", "containers", "decisions", "session_events", "choice_tokens", "choices"),
        *("policies", "tiers", "user_preferences"),
    )
    return {
        table: await rows(roost, f"SELECT xmin::text, ctid::text, t::text FROM {table} t")
        for table in tables
    }


async def test_a_preview_shows_the_choice_and_writes_nothing(asking: World) -> None:
    """Candidates with age, continuity and wait, but no tokens; no row of any table changes."""
    session = (await asking.one.start()).session
    await asking.one.stop(session.session_id)
    token = (await offered(asking.one.start()))[CONTINUE].choice_token
    before = await everything(asking)
    start = rpc_pb.StartSessionRequest(key=key())
    seen = await asking.one.stub.PreviewStart(
        rpc_pb.PreviewStartRequest(start=start), timeout=TIMEOUT
    )
    assert seen.error_reason == "CHOICE_REQUIRED"
    assert [each.choice for each in seen.candidates] == [CONTINUE, FRESH]
    assert seen.candidates[0].expected_continuity == pb.CONTINUITY_MEMORY
    assert seen.candidates[0].age.ToTimedelta() > timedelta(0)
    assert seen.candidates[1].HasField("expected_wait_milliseconds")
    assert {each.choice_token for each in seen.candidates} == {""}
    start.choice_token = token
    answered = await asking.two.stub.PreviewStart(
        rpc_pb.PreviewStartRequest(start=start), timeout=TIMEOUT
    )
    assert (answered.outcome, answered.error_reason) == (pb.START_OUTCOME_RESUMED, "")
    start.choice_token = "x" * 43
    wrong = await asking.two.stub.PreviewStart(
        rpc_pb.PreviewStartRequest(start=start), timeout=TIMEOUT
    )
    assert wrong.error_reason == "CHOICE_TOKEN_INVALID"
    assert await everything(asking) == before
    assert (await asking.one.start(choice_token=token)).outcome == pb.START_OUTCOME_RESUMED


@pytest.mark.usefixtures("patient_database")
async def test_a_fresh_answer_is_stale_if_the_session_is_reused_before_the_commit(
    asking: World,
) -> None:
    """Another tab reuses the session after this start read it and before this start commits. A
    reuse leaves the epoch unchanged, since the session needs no transition: comparing epochs alone
    would not see it, and the other tab's session would be ended under its user.
    """
    await asking.one.start()
    fresh = (await offered(asking.two.start()))[FRESH]
    async with asking.two.running.database.transaction() as other:
        await other.execute("UPDATE sessions SET start_count = start_count + 1")
        late = asyncio.create_task(failing(asking.one.start(choice_token=fresh.choice_token)))

        async def is_blocked() -> bool:
            query = (
                "SELECT 1 FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            return bool(await rows(asking, query))

        assert await eventually(is_blocked)
    assert (await late).reason == "CHOICE_STALE"
    assert await asking.committed("create") == 1
