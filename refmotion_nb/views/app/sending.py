"""What Panel sends to a browser that is still busy with what it was sent before: all of it."""

from __future__ import annotations

from functools import cache
from typing import Any

from panel.io import document


@cache
def leave_none_behind() -> None:
    """Let Panel 1.9 send every message that it lays aside.

    Messages to a socket that is being written to wait in ``_WRITE_MSGS``, and each has a task that sends what waits by
    then. A task sends nothing without the mark of the document in ``_WRITE_BLOCK``, which the one before takes away as it
    ends, also where more has been laid aside meanwhile: a page then stays as it was until something else on it changes.
    """
    send = document._dispatch_msgs

    async def send_what_waits(doc: Any) -> None:
        if doc in document._WRITE_MSGS:
            document._WRITE_BLOCK[doc] = True
        await send(doc)

    document._dispatch_msgs = send_what_waits
