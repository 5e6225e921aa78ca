"""The table of states."""

from __future__ import annotations

import pytest

from session_service.domain.states import LEGAL, LIVE, IllegalTransition, State, check_move


def test_every_state_has_its_row() -> None:
    """No state is forgotten, and none may follow itself."""
    assert set(LEGAL) == set(State)
    assert all(state not in after for state, after in LEGAL.items())


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_what_the_table_does_not_have_is_an_error(before: State, after: State) -> None:
    """Every pair of states, one way or the other."""
    if after in LEGAL[before]:
        check_move(before, after)
        return
    with pytest.raises(IllegalTransition) as caught:
        check_move(before, after)
    assert (caught.value.before, caught.value.after) == (before, after)


def test_every_state_can_end_and_every_ended_session_can_come_back() -> None:
    """From wherever a session stands some way leads to ENDED, and from there back to ACTIVE."""

    def reachable(start: State) -> set[State]:
        seen, todo = {start}, [start]
        while todo:
            for after in LEGAL[todo.pop()] - seen:
                seen.add(after)
                todo.append(after)
        return seen

    for state in State:
        assert State.ENDED in reachable(state)
    assert State.ACTIVE in reachable(State.ENDED)
    assert State.ENDED not in LIVE
