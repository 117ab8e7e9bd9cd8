"""How a process of the demo learns that the one that started it is gone, however that ended.

The parent holds the write end of the child's standard input. When it dies, also by SIGKILL, the
kernel closes that end and the child reads end of file: nothing is left running.
"""

from __future__ import annotations

import asyncio
import os
import sys

__all__ = ["parent_gone"]


async def parent_gone() -> None:
    """Returns when standard input has ended. Started by hand with no pipe there: never."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    fd = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(fd, 4096):  # what the parent might say is not listened to
            loop.remove_reader(fd)
            gone.set()

    try:
        loop.add_reader(fd, readable)
    except PermissionError:
        # epoll takes no regular file and no /dev/null: such an input never ends by itself.
        await asyncio.Event().wait()
    await gone.wait()
