"""What a node can tell of another member, in figures."""

from __future__ import annotations

import math
from typing import Any

from peers.core.members import Member, Members
from peers.core.outbox import Outbox
from peers.core.sessions import Session, Sessions

__all__ = ["member_figures", "members_figures"]


def members_figures(
    members: Members, sessions: Sessions, outbox: Outbox, now_ns: int
) -> list[dict[str, Any]]:
    """Of all members known, the node itself first."""
    me = members.me
    return [
        member_figures(
            member,
            sessions.get(member.node),
            outbox.sent.get(member.address, (0, 0)),
            own=member is me,
            now_ns=now_ns,
        )
        for member in (me, *members.others())
    ]


def member_figures(
    member: Member, session: Session | None, sent: tuple[int, int], *, own: bool, now_ns: int
) -> dict[str, Any]:
    """For metrics and the admin interface; times in nanoseconds. `sent` are datagrams and octets to
    it, `own` is whether it is the node itself."""
    sent_count, sent_bytes = sent
    return {
        "name": member.name,
        "address": member.address,
        "heard_from": member.heard_from,
        # As others say it is alive; nothing of it comes here.
        "state": "unheard" if member.live and member.cut else member.state.name.lower(),
        "incarnation": member.incarnation,
        "boot_ms": member.boot,
        "self": own,
        "rtt_ns": member.rtt_ns,
        "staleness_ns": now_ns - session.heard_ns if session is not None else None,
        "received": session.received if session is not None else 0,
        "received_bytes": session.received_bytes if session is not None else 0,
        "sent": sent_count,
        "sent_bytes": sent_bytes,
        # A probe and its answer go both ways: 1 - (1 - loss)^2 of them miss.
        "loss": 1.0 - math.sqrt(1.0 - member.unanswered),
    }
