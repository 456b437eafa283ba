"""Messages between the process that judges and the process that holds the program, nested as their calls are."""

from __future__ import annotations

import os

from .codec import CodecError, from_frame, to_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MESSAGE_LIMIT = 4 << 20


class ProgramGone(BaseException):
    """The program ended, or sent what it may not; no `except Exception` of a test hides it."""


class Channel:
    """Requests and replies over one socket, nested as the calls are.

    Args:
        descriptor: a connected stream socket.
        handle: answers a request of the other side.
    """

    def __init__(self, descriptor: int, handle: Callable[[dict[str, Any]], Any]):
        self.descriptor = descriptor
        self.handle = handle
        self.broken = False
        self._buffer = bytearray()

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the reply; requests that arrive meanwhile are answered first."""
        self._send({"request": message})
        while True:
            received = self.receive()
            if "reply" in received:
                reply = received["reply"]
                if not isinstance(reply, dict):
                    raise self.gone("malformed reply")
                return reply
            self._answer(received)

    def serve(self) -> None:
        """Answer requests until the other side closes."""
        while True:
            self._answer(self.receive())

    def _answer(self, received: dict[str, Any]) -> None:
        request = received.get("request")
        if not isinstance(request, dict):
            raise self.gone("malformed request")
        self.reply(self.handle(request))

    def reply(self, answer: dict[str, Any]) -> None:
        """Send a reply."""
        self._send({"reply": answer})

    def _send(self, message: dict[str, Any]) -> None:
        frame = memoryview(to_frame(message, MESSAGE_LIMIT))
        try:
            while frame:
                frame = frame[os.write(self.descriptor, frame) :]
        except OSError as error:
            raise self.gone(str(error)) from None

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            ProgramGone: there is none any more, or what came is none.
        """
        while True:
            try:
                found = from_frame(self._buffer, MESSAGE_LIMIT)
                data = b"" if found is not None else os.read(self.descriptor, 1 << 16)
            except (CodecError, OSError) as error:
                raise self.gone(str(error)) from None
            if found is not None:
                del self._buffer[: found[1]]
                if not isinstance(found[0], dict):
                    raise self.gone("malformed message")
                return found[0]
            if not data:
                raise self.gone("the program ended")
            self._buffer += data

    def gone(self, reason: str) -> ProgramGone:
        """The error to raise for a program that cannot be talked to any more."""
        self.broken = True
        return ProgramGone(reason)
