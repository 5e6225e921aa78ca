"""The table of legal state changes."""

from __future__ import annotations

import pytest

from session_service.domain.states import LEGAL, LIVE, IllegalTransition, State, check_move
from tests.cases import each


def test_every_state_has_its_row() -> None:
    """Each state is in it, and none follows itself."""
    assert set(LEGAL) == set(State)
    assert all(state not in after for state, after in LEGAL.items())


@each("before", State)
@each("after", State)
def test_a_state_change_outside_the_table_is_an_error(before: State, after: State) -> None:
    """Every ordered pair of states that the table lacks."""
    if after in LEGAL[before]:
        check_move(before, after)
        return
    with pytest.raises(IllegalTransition) as caught:
        check_move(before, after)
    assert (caught.value.before, caught.value.after) == (before, after)


def test_every_state_can_end_and_every_ended_session_can_be_undeleted() -> None:
    """From each state ENDED can be reached, and from there ACTIVE."""

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
