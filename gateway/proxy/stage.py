"""How far an exchange has come; its value is the phase that a log line tells.

ADMIT   routed, named, asked of breaker and limits      admitted . held . refused
HELD    stands in the queue of the row that refused     granted . deadline . client gone
DIAL    admitted, waits for a connection                connected . dial failed . client gone
SENT    the request goes out, no response head yet      head . again . upstream gone or silent
ANSWER  the response streams, or the tunnel is open     end . broken on either side
OVER    answered; the request's rest may still come     end of the request (bounded)
"""

from __future__ import annotations

import enum

from gateway.errors import Phase

__all__ = ["Stage"]


class Stage(enum.Enum):
    """The stages of an exchange, in order; a retry goes back to HELD or DIAL."""

    ADMIT = Phase.REQUEST
    HELD = Phase.QUEUE
    DIAL = Phase.CONNECT
    SENT = Phase.HEAD
    ANSWER = Phase.DATA
    OVER = Phase.NONE
