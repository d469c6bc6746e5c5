"""The upper layer's state machine: PS3.8 §9.2, Table 9-10, as a grid to lay beside the standard.

`transition` looks up one cell; `EFFECTS` says what each action does, in the closed set of `Effect`. Nothing
is done here: `harmony.ul.upper_layer` carries the effects out. Where the standard leaves the next state to
the action (AE-6, AR-8), the cell holds both and the caller chooses.

Supervision of connecting, associating and releasing is not in the table (PS3.8 §9.1.5 keeps ARTIM out of it):
whoever runs out of patience issues A_ABORT_REQUEST.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

__all__ = ["EFFECTS", "Action", "Effect", "Event", "State", "Transition", "transition"]


class State(IntEnum):
    """PS3.8 Tables 9-1 to 9-5."""

    STA1 = 1  # idle
    STA2 = 2  # transport connection open, awaiting A-ASSOCIATE-RQ PDU
    STA3 = 3  # awaiting local A-ASSOCIATE response primitive
    STA4 = 4  # awaiting transport connection opening to complete
    STA5 = 5  # awaiting A-ASSOCIATE-AC or -RJ PDU
    STA6 = 6  # association established, ready for data transfer
    STA7 = 7  # awaiting A-RELEASE-RP PDU
    STA8 = 8  # awaiting local A-RELEASE response primitive
    STA9 = 9  # release collision, requestor side: awaiting local A-RELEASE response primitive
    STA10 = 10  # release collision, acceptor side: awaiting A-RELEASE-RP PDU
    STA11 = 11  # release collision, requestor side: awaiting A-RELEASE-RP PDU
    STA12 = 12  # release collision, acceptor side: awaiting local A-RELEASE response primitive
    STA13 = 13  # awaiting transport connection close; the association no longer exists


class Event(IntEnum):
    """The rows of PS3.8 Table 9-10. Requests and responses are primitives of the local user."""

    A_ASSOCIATE_REQUEST = 1
    TRANSPORT_CONFIRM = 2  # the connection we opened is there
    ASSOCIATE_AC = 3
    ASSOCIATE_RJ = 4
    TRANSPORT_INDICATION = 5  # a connection was accepted
    ASSOCIATE_RQ = 6
    A_ASSOCIATE_RESPONSE_ACCEPT = 7
    A_ASSOCIATE_RESPONSE_REJECT = 8
    P_DATA_REQUEST = 9
    P_DATA_TF = 10
    A_RELEASE_REQUEST = 11
    RELEASE_RQ = 12
    RELEASE_RP = 13
    A_RELEASE_RESPONSE = 14
    A_ABORT_REQUEST = 15
    ABORT = 16
    TRANSPORT_CLOSED = 17
    ARTIM_EXPIRED = 18
    INVALID_PDU = 19  # unrecognized or invalid


class Action(Enum):
    """PS3.8 Tables 9-6 to 9-9."""

    AE_1 = "AE-1"
    AE_2 = "AE-2"
    AE_3 = "AE-3"
    AE_4 = "AE-4"
    AE_5 = "AE-5"
    AE_6 = "AE-6"
    AE_7 = "AE-7"
    AE_8 = "AE-8"
    DT_1 = "DT-1"
    DT_2 = "DT-2"
    AR_1 = "AR-1"
    AR_2 = "AR-2"
    AR_3 = "AR-3"
    AR_4 = "AR-4"
    AR_5 = "AR-5"
    AR_6 = "AR-6"
    AR_7 = "AR-7"
    AR_8 = "AR-8"
    AR_9 = "AR-9"
    AR_10 = "AR-10"
    AA_1 = "AA-1"
    AA_2 = "AA-2"
    AA_3 = "AA-3"
    AA_4 = "AA-4"
    AA_5 = "AA-5"
    AA_6 = "AA-6"
    AA_7 = "AA-7"
    AA_8 = "AA-8"


class Effect(Enum):
    """All that an action can do. START_ARTIM also restarts; STOP_ARTIM does nothing when it is not running."""

    CONNECT = "open the transport connection"
    SEND_ASSOCIATE_RQ = "send A-ASSOCIATE-RQ"
    SEND_ASSOCIATE_AC = "send A-ASSOCIATE-AC"
    SEND_ASSOCIATE_RJ = "send A-ASSOCIATE-RJ"
    SEND_P_DATA_TF = "send P-DATA-TF"
    SEND_RELEASE_RQ = "send A-RELEASE-RQ"
    SEND_RELEASE_RP = "send A-RELEASE-RP"
    SEND_ABORT_USER = "send A-ABORT, source 0 service-user"
    SEND_ABORT_PROVIDER = "send A-ABORT, source 2 service-provider"
    INDICATE_ASSOCIATE = "A-ASSOCIATE indication: accept or reject?"
    CONFIRM_ACCEPTED = "A-ASSOCIATE confirmation, accepted"
    CONFIRM_REJECTED = "A-ASSOCIATE confirmation, rejected"
    INDICATE_P_DATA = "P-DATA indication"
    INDICATE_RELEASE = "A-RELEASE indication"
    INDICATE_RELEASE_COLLISION = "A-RELEASE indication, release collision"
    CONFIRM_RELEASE = "A-RELEASE confirmation"
    INDICATE_ABORT = "A-ABORT or A-P-ABORT indication, as the source received says"
    INDICATE_P_ABORT = "A-P-ABORT indication"
    START_ARTIM = "start ARTIM"
    STOP_ARTIM = "stop ARTIM"
    CLOSE = "close the transport connection"


EFFECTS: dict[Action, tuple[Effect, ...]] = {
    # Table 9-6, association establishment
    Action.AE_1: (Effect.CONNECT,),
    Action.AE_2: (Effect.SEND_ASSOCIATE_RQ,),
    Action.AE_3: (Effect.CONFIRM_ACCEPTED,),
    Action.AE_4: (Effect.CONFIRM_REJECTED, Effect.CLOSE),
    Action.AE_5: (Effect.START_ARTIM,),
    # AE-6 goes on as the caller decides: acceptable to the provider -> INDICATE_ASSOCIATE, Sta3;
    # else SEND_ASSOCIATE_RJ, START_ARTIM, Sta13.
    Action.AE_6: (Effect.STOP_ARTIM,),
    Action.AE_7: (Effect.SEND_ASSOCIATE_AC,),
    Action.AE_8: (Effect.SEND_ASSOCIATE_RJ, Effect.START_ARTIM),
    # Table 9-7, data transfer
    Action.DT_1: (Effect.SEND_P_DATA_TF,),
    Action.DT_2: (Effect.INDICATE_P_DATA,),
    # Table 9-8, association release
    Action.AR_1: (Effect.SEND_RELEASE_RQ,),
    Action.AR_2: (Effect.INDICATE_RELEASE,),
    Action.AR_3: (Effect.CONFIRM_RELEASE, Effect.CLOSE),
    Action.AR_4: (Effect.SEND_RELEASE_RP, Effect.START_ARTIM),
    Action.AR_5: (Effect.STOP_ARTIM,),
    Action.AR_6: (Effect.INDICATE_P_DATA,),
    Action.AR_7: (Effect.SEND_P_DATA_TF,),
    Action.AR_8: (Effect.INDICATE_RELEASE_COLLISION,),
    Action.AR_9: (Effect.SEND_RELEASE_RP,),
    Action.AR_10: (Effect.CONFIRM_RELEASE,),
    # Table 9-9, association abort
    Action.AA_1: (Effect.SEND_ABORT_USER, Effect.START_ARTIM),
    Action.AA_2: (Effect.STOP_ARTIM, Effect.CLOSE),
    Action.AA_3: (Effect.INDICATE_ABORT, Effect.CLOSE),
    Action.AA_4: (Effect.INDICATE_P_ABORT,),
    Action.AA_5: (Effect.STOP_ARTIM,),
    Action.AA_6: (),
    Action.AA_7: (Effect.SEND_ABORT_PROVIDER,),
    Action.AA_8: (Effect.SEND_ABORT_PROVIDER, Effect.INDICATE_P_ABORT, Effect.START_ARTIM),
}

# AE-2>5 is action AE-2, next state Sta5; a point is an empty cell: that event cannot happen in that state.
_TABLE_9_10 = """\
Evt Sta1   Sta2      Sta3    Sta4   Sta5    Sta6    Sta7      Sta8    Sta9    Sta10    Sta11   Sta12   Sta13
  1 AE-1>4 .         .       .      .       .       .         .       .       .        .       .       .
  2 .      .         .       AE-2>5 .       .       .         .       .       .        .       .       .
  3 .      AA-1>13   AA-8>13 .      AE-3>6  AA-8>13 AA-8>13   AA-8>13 AA-8>13 AA-8>13  AA-8>13 AA-8>13 AA-6>13
  4 .      AA-1>13   AA-8>13 .      AE-4>1  AA-8>13 AA-8>13   AA-8>13 AA-8>13 AA-8>13  AA-8>13 AA-8>13 AA-6>13
  5 AE-5>2 .         .       .      .       .       .         .       .       .        .       .       .
  6 .      AE-6>3/13 AA-8>13 .      AA-8>13 AA-8>13 AA-8>13   AA-8>13 AA-8>13 AA-8>13  AA-8>13 AA-8>13 AA-7>13
  7 .      .         AE-7>6  .      .       .       .         .       .       .        .       .       .
  8 .      .         AE-8>13 .      .       .       .         .       .       .        .       .       .
  9 .      .         .       .      .       DT-1>6  .         AR-7>8  .       .        .       .       .
 10 .      AA-1>13   AA-8>13 .      AA-8>13 DT-2>6  AR-6>7    AA-8>13 AA-8>13 AA-8>13  AA-8>13 AA-8>13 AA-6>13
 11 .      .         .       .      .       AR-1>7  .         .       .       .        .       .       .
 12 .      AA-1>13   AA-8>13 .      AA-8>13 AR-2>8  AR-8>9/10 AA-8>13 AA-8>13 AA-8>13  AA-8>13 AA-8>13 AA-6>13
 13 .      AA-1>13   AA-8>13 .      AA-8>13 AA-8>13 AR-3>1    AA-8>13 AA-8>13 AR-10>12 AR-3>1  AA-8>13 AA-6>13
 14 .      .         .       .      .       .       .         AR-4>13 AR-9>11 .        .       AR-4>13 .
 15 .      .         AA-1>13 AA-2>1 AA-1>13 AA-1>13 AA-1>13   AA-1>13 AA-1>13 AA-1>13  AA-1>13 AA-1>13 .
 16 .      AA-2>1    AA-3>1  .      AA-3>1  AA-3>1  AA-3>1    AA-3>1  AA-3>1  AA-3>1   AA-3>1  AA-3>1  AA-2>1
 17 .      AA-5>1    AA-4>1  AA-4>1 AA-4>1  AA-4>1  AA-4>1    AA-4>1  AA-4>1  AA-4>1   AA-4>1  AA-4>1  AR-5>1
 18 .      AA-2>1    .       .      .       .       .         .       .       .        .       .       AA-2>1
 19 .      AA-1>13   AA-8>13 .      AA-8>13 AA-8>13 AA-8>13   AA-8>13 AA-8>13 AA-8>13  AA-8>13 AA-8>13 AA-7>13
"""


@dataclass(frozen=True, slots=True)
class Transition:
    """One cell of Table 9-10."""

    action: Action
    next_state: State
    """For AE-6 and AR-8 the first choice: Sta3, the request is acceptable; Sta9, we are the association requestor."""
    alternative: State | None
    """For AE-6 and AR-8 the other choice: Sta13, rejected; Sta10, we are the association acceptor."""


def transition(state: State, event: Event) -> Transition | None:
    """Look up the cell; None when it is empty, that is when the event is not possible in this state."""
    return _CELLS[state][event]


def _parse_table(table: str) -> list[list[Transition | None]]:
    """Turn the grid into lists indexed by state and event; index 0 of both is unused. ValueError if it is crooked."""
    _, *rows = (line.split() for line in table.splitlines())
    if [int(row[0]) for row in rows] != [*Event] or any(len(row) != 1 + len(State) for row in rows):
        raise ValueError("Table 9-10 must have a row per event and a column per state")
    cells: list[list[Transition | None]] = [[None] * (len(Event) + 1) for _ in range(len(State) + 1)]
    for event, *columns in rows:
        for state, cell in zip(State, columns, strict=True):
            cells[state][int(event)] = _parse_cell(cell)
    return cells


def _parse_cell(cell: str) -> Transition | None:
    if cell == ".":
        return None
    action, _, states = cell.partition(">")
    next_state, _, alternative = states.partition("/")
    return Transition(
        Action(action), State(int(next_state)), State(int(alternative)) if alternative else None
    )


_CELLS = _parse_table(_TABLE_9_10)
