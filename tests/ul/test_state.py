"""PS3.8 Table 9-10 cell by cell, against a second form of it: by state, as the standard's prose tells it."""

import pytest

from harmony.ul.state import EFFECTS, Action, Effect, Event, State, Transition, transition

# The PDUs a state does not expect all meet the same action; written once per state instead of once per cell.
PDU_EVENTS = {3, 4, 6, 10, 12, 13, 19}


def others(action, next_state, *, but=()):
    return dict.fromkeys(PDU_EVENTS - set(but), (action, next_state))


# state: {event: (action, next state)}; an event that is not there cannot happen in that state.
TABLE = {
    1: {1: ("AE-1", 4), 5: ("AE-5", 2)},
    2: {
        6: ("AE-6", (3, 13)),
        16: ("AA-2", 1),
        17: ("AA-5", 1),
        18: ("AA-2", 1),
        **others("AA-1", 13, but=[6]),
    },
    3: {
        7: ("AE-7", 6),
        8: ("AE-8", 13),
        15: ("AA-1", 13),
        16: ("AA-3", 1),
        17: ("AA-4", 1),
        **others("AA-8", 13),
    },
    4: {2: ("AE-2", 5), 15: ("AA-2", 1), 17: ("AA-4", 1)},
    5: {
        3: ("AE-3", 6),
        4: ("AE-4", 1),
        15: ("AA-1", 13),
        16: ("AA-3", 1),
        17: ("AA-4", 1),
        **others("AA-8", 13, but=[3, 4]),
    },
    6: {
        9: ("DT-1", 6),
        10: ("DT-2", 6),
        11: ("AR-1", 7),
        12: ("AR-2", 8),
        15: ("AA-1", 13),
        16: ("AA-3", 1),
        17: ("AA-4", 1),
        **others("AA-8", 13, but=[10, 12]),
    },
    7: {
        10: ("AR-6", 7),
        12: ("AR-8", (9, 10)),
        13: ("AR-3", 1),
        15: ("AA-1", 13),
        16: ("AA-3", 1),
        17: ("AA-4", 1),
        **others("AA-8", 13, but=[10, 12, 13]),
    },
    8: {
        9: ("AR-7", 8),
        14: ("AR-4", 13),
        15: ("AA-1", 13),
        16: ("AA-3", 1),
        17: ("AA-4", 1),
        **others("AA-8", 13),
    },
    9: {14: ("AR-9", 11), 15: ("AA-1", 13), 16: ("AA-3", 1), 17: ("AA-4", 1), **others("AA-8", 13)},
    10: {
        13: ("AR-10", 12),
        15: ("AA-1", 13),
        16: ("AA-3", 1),
        17: ("AA-4", 1),
        **others("AA-8", 13, but=[13]),
    },
    11: {
        13: ("AR-3", 1),
        15: ("AA-1", 13),
        16: ("AA-3", 1),
        17: ("AA-4", 1),
        **others("AA-8", 13, but=[13]),
    },
    12: {14: ("AR-4", 13), 15: ("AA-1", 13), 16: ("AA-3", 1), 17: ("AA-4", 1), **others("AA-8", 13)},
    13: {
        6: ("AA-7", 13),
        16: ("AA-2", 1),
        17: ("AR-5", 1),
        18: ("AA-2", 1),
        19: ("AA-7", 13),
        **others("AA-6", 13, but=[6, 19]),
    },
}


def test_states_and_events_are_those_of_the_table():
    assert [*State] == list(range(1, 14))
    assert [*Event] == list(range(1, 20))


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_cell(state, event):
    expected = TABLE[state].get(event)
    cell = transition(state, event)
    if expected is None:
        assert cell is None
        return
    action, next_state = expected
    first, second = next_state if isinstance(next_state, tuple) else (next_state, None)
    assert cell == Transition(Action(action), State(first), None if second is None else State(second))


def test_123_cells_are_filled():
    assert sum(transition(state, event) is not None for state in State for event in Event) == 123


def test_every_action_is_used_and_has_effects_in_the_order_of_the_standard():
    used = {cell.action for state in State for event in Event if (cell := transition(state, event))}
    assert used == set(Action)
    assert list(EFFECTS) == list(Action)


def test_the_next_state_depends_only_on_the_action():
    """Tables 9-6 to 9-9 give the next state with the action: two cells with one action must agree."""
    seen = {}
    for state in State:
        for event in Event:
            if cell := transition(state, event):
                assert seen.setdefault(cell.action, cell) == cell


def test_only_ae_6_and_ar_8_leave_a_choice():
    choices = {
        cell.action: (cell.next_state, cell.alternative)
        for state in State
        for event in Event
        if (cell := transition(state, event)) and cell.alternative is not None
    }
    assert choices == {Action.AE_6: (State.STA3, State.STA13), Action.AR_8: (State.STA9, State.STA10)}


def test_artim_runs_in_states_2_and_13_only():
    """PS3.8 §9.1.5: whoever enters Sta2 or Sta13 starts it, whoever leaves them stops it."""
    for state in State:
        for event in Event:
            cell = transition(state, event)
            if cell is None:
                continue
            effects = EFFECTS[cell.action]
            running = state in (State.STA2, State.STA13)
            for effect in effects:
                running = effect is Effect.START_ARTIM or (running and effect is not Effect.STOP_ARTIM)
            if cell.action is not Action.AE_6:
                assert running == (cell.next_state in (State.STA2, State.STA13)), (state, event)
    assert EFFECTS[Action.AE_6] == (Effect.STOP_ARTIM,)


def test_the_connection_is_closed_exactly_when_idle_is_entered_with_it_open():
    for state in State:
        for event in Event:
            cell = transition(state, event)
            if cell is None:
                continue
            closes = Effect.CLOSE in EFFECTS[cell.action]
            assert closes == (cell.next_state is State.STA1 and event is not Event.TRANSPORT_CLOSED), (
                state,
                event,
            )


def test_who_an_abort_comes_from():
    """AA-1 is sent for the service-user (source 0), AA-7 and AA-8 for the service-provider (source 2)."""
    assert EFFECTS[Action.AA_1] == (Effect.SEND_ABORT_USER, Effect.START_ARTIM)
    assert EFFECTS[Action.AA_7] == (Effect.SEND_ABORT_PROVIDER,)
    assert EFFECTS[Action.AA_8] == (Effect.SEND_ABORT_PROVIDER, Effect.INDICATE_P_ABORT, Effect.START_ARTIM)


@pytest.mark.parametrize(
    ("action", "effects"),
    [
        ("AE-1", [Effect.CONNECT]),
        ("AE-2", [Effect.SEND_ASSOCIATE_RQ]),
        ("AE-3", [Effect.CONFIRM_ACCEPTED]),
        ("AE-4", [Effect.CONFIRM_REJECTED, Effect.CLOSE]),
        ("AE-5", [Effect.START_ARTIM]),
        ("AE-7", [Effect.SEND_ASSOCIATE_AC]),
        ("AE-8", [Effect.SEND_ASSOCIATE_RJ, Effect.START_ARTIM]),
        ("DT-1", [Effect.SEND_P_DATA_TF]),
        ("DT-2", [Effect.INDICATE_P_DATA]),
        ("AR-1", [Effect.SEND_RELEASE_RQ]),
        ("AR-2", [Effect.INDICATE_RELEASE]),
        ("AR-3", [Effect.CONFIRM_RELEASE, Effect.CLOSE]),
        ("AR-4", [Effect.SEND_RELEASE_RP, Effect.START_ARTIM]),
        ("AR-5", [Effect.STOP_ARTIM]),
        ("AR-6", [Effect.INDICATE_P_DATA]),
        ("AR-7", [Effect.SEND_P_DATA_TF]),
        ("AR-8", [Effect.INDICATE_RELEASE_COLLISION]),
        ("AR-9", [Effect.SEND_RELEASE_RP]),
        ("AR-10", [Effect.CONFIRM_RELEASE]),
        ("AA-2", [Effect.STOP_ARTIM, Effect.CLOSE]),
        ("AA-3", [Effect.INDICATE_ABORT, Effect.CLOSE]),
        ("AA-4", [Effect.INDICATE_P_ABORT]),
        ("AA-5", [Effect.STOP_ARTIM]),
        ("AA-6", []),
    ],
)
def test_effects_of_the_other_actions(action, effects):
    assert EFFECTS[Action(action)] == tuple(effects)


@pytest.mark.parametrize("requestor", [True, False])
def test_release_collision_path(requestor):
    """Requestor 7, 9, 11, 1; acceptor 7, 10, 12, 13; both send A-RELEASE-RP (PS3.8 §7.2.2)."""
    if requestor:
        events, path = [Event.A_RELEASE_RESPONSE, Event.RELEASE_RP], [9, 11, 1]
    else:
        events, path = [Event.RELEASE_RP, Event.A_RELEASE_RESPONSE], [10, 12, 13]
    cell = transition(State.STA7, Event.RELEASE_RQ)
    state = cell.next_state if requestor else cell.alternative
    walked, sent = [state], []
    for event in events:
        cell = transition(state, event)
        state = cell.next_state
        walked.append(state)
        sent += [effect for effect in EFFECTS[cell.action] if effect is Effect.SEND_RELEASE_RP]
    assert walked == path
    assert sent == [Effect.SEND_RELEASE_RP]
