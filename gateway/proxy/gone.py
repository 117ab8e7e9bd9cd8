"""What a connection holds in place of its transport once that is lost.

A protocol and its transport hold each other. Without TLS the loop lets go; with TLS twenty objects
stay until the collector looks, and it looks seldom (9,000 connections that came and went left
130 MB). So a lost connection lets go itself, and whoever still asks it gets a harmless answer.
"""

from __future__ import annotations

import asyncio

__all__ = ["GONE"]


class _Gone(asyncio.Transport):
    """A transport without a connection: closing, and nothing has any effect."""

    __slots__ = ()

    def is_closing(self) -> bool:
        return True

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: object) -> None:
        """Nobody is there to read it."""

    def write_eof(self) -> None:
        """Nothing is open."""

    def pause_reading(self) -> None:
        """Nothing comes."""

    def resume_reading(self) -> None:
        """Nothing comes."""

    def close(self) -> None:
        """It is."""

    def abort(self) -> None:
        """It is."""


GONE = _Gone()
