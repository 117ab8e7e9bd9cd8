"""What the mesh raises: a configuration that cannot work, and a datagram that is not taken.

A `DropError` never leaves `Node`: its reason becomes a count, because a datagram is input from
outside and its sender learns nothing from an exception here.
"""

from __future__ import annotations

import enum

__all__ = ["ConfigError", "Drop", "DropError"]


class Drop(enum.Enum):
    """Why a datagram was not taken; the value names the count in `Node.drops`."""

    OVERSIZED = "oversized"  # longer than any datagram or record of ours
    GARBAGE = "garbage"  # no envelope, no msgpack, or not of the shape that PROTOCOL.md gives
    VERSION = "version"  # an envelope of another protocol version
    UNSEALED = "unsealed"  # in clear although keys are configured, or not from loopback
    UNKNOWN_KEY = "unknown_key"  # sealed with a key that is not configured here
    FORGED = "forged"  # the seal does not verify
    ALIEN_CLUSTER = "alien_cluster"  # another cluster's label
    OWN = "own"  # our own datagram came back
    REPLAYED = "replayed"  # a sequence number seen before, or too old to tell
    OLD_BOOT = "old_boot"  # from an earlier life of a member
    UNKNOWN_BOOT = "unknown_boot"  # a life that has not yet answered a challenge
    DUPLICATE_NAME = "duplicate_name"  # a second live node under one name
    MEMBERS_FULL = "members_full"  # one member more than `members_max`
    UNREAD = "unread"  # the socket's buffer was full: the kernel dropped it, good or bad


class ConfigError(ValueError):
    """A `Config` that contradicts itself; the message names the field and what is allowed."""


class DropError(Exception):
    """A datagram is not taken, for this reason."""

    def __init__(self, reason: Drop) -> None:
        super().__init__(reason.value)
        self.reason = reason
