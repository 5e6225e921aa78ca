"""End a stream whose reader takes nothing, so that it does not hold what the stream holds.

gRPC sends no more than the reader's window: 64 KiB at first, and some MiB where it has measured a
fast connection. Then the handler waits, with what it has read from the database, its connection to
a container, or a file there, for as long as the reader's connection lives.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from grpc_edge.handlers import Wrapping, rebuilt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from grpc_edge.handlers import Context, Handler


class ReaderStalled(Exception):
    """The reader of a stream took nothing for so long that the stream was ended."""

    def __init__(self, patience: float) -> None:
        super().__init__(
            f"the stream was ended, because its next message was not read within {patience:g} s; "
            "read it again, and faster"
        )


class Readers(Wrapping):
    """The layer that writes the messages of streams, next outside the one that makes statuses of
    errors.

    If a message cannot be written for `patience` seconds, ReaderStalled is raised in that layer, at
    its `yield`, and what is further in is closed. The reader gets the status after what is under
    way, if it ever reads on.
    """

    def __init__(self, patience: float) -> None:
        """`patience` in s; 0: without limit."""
        super().__init__()
        self._patience = patience

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Change the handlers that are generators."""
        return rebuilt(handler, lambda behavior: behavior, self._writing)

    # Any: behaviors take and give messages of every type.
    def _writing(self, behavior: Any) -> Any:
        async def call(request: Any, context: Context) -> None:
            answers: AsyncGenerator[Any, None] = behavior(request, context)
            # Closed at once when the call is cancelled, while it waits here.
            async with aclosing(answers):
                async for answer in answers:
                    try:
                        async with asyncio.timeout(self._patience or None):
                            await context.write(answer)
                    except TimeoutError:
                        break
                else:
                    return
                await answers.athrow(ReaderStalled(self._patience))

        return call
