"""What Panel sends to a browser: all of it to one that is busy with what it was sent before, nothing to one that has left."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from functools import cache
from typing import Any

from panel.io import document
from tornado.websocket import WebSocketClosedError, WebSocketHandler


@cache
def leave_none_behind() -> None:
    """Let Panel 1.9 send every message that it lays aside, and take it well that a browser leaves meanwhile.

    Messages to a socket that is being written to wait in ``_WRITE_MSGS``, and each has a task that sends what waits by
    then. A task sends nothing without the mark of the document in ``_WRITE_BLOCK``, which the one before takes away as it
    ends, also where more has been laid aside meanwhile: a page then stays as it was until something else on it changes.

    A socket that closes between the parts of a message ends such a task by an error, which is told in the terminal.
    """
    send = document._dispatch_msgs

    async def send_what_waits(doc: Any) -> None:
        if doc in document._WRITE_MSGS:
            document._WRITE_BLOCK[doc] = True
        await send(doc)

    document._dispatch_msgs = send_what_waits
    document.dispatch_tornado = write_parts


def write_parts(conn: Any, events: Any = None, msg: Any = None) -> list[Any]:
    """Write the parts of a message, or those of events, as long as the browser is there; return what to wait for."""
    sent: list[Any] = []
    if msg is None and events:
        msg = conn.protocol.create("PATCH-DOC", events)
    if msg is None:
        return sent
    parts: list[Any] = [msg.header_json, msg.metadata_json, msg.content_json]
    for buffer in msg._buffers:
        parts += [json.dumps(buffer.ref), buffer.to_bytes()]
    with suppress(WebSocketClosedError):
        for part in parts:
            written = WebSocketHandler.write_message(conn._socket, part, binary=not isinstance(part, str))
            sent.append(asyncio.ensure_future(_written_or_gone(written)))
    return sent


async def _written_or_gone(written: Any) -> None:
    with suppress(WebSocketClosedError):
        await written
