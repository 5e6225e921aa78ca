"""The callers: random calls of every kind, chosen by the seed."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration

from roost.session.v1 import session_pb2 as pb
from tests.chaos.projects import session_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.history import Call
    from tests.chaos.recording_client import RecordingClient

#: The operations of a caller, with their weights.
WEIGHTS = {
    "start": 30,
    "visit": 18,
    "storm": 5,
    "pause": 10,
    "stop": 6,
    "resume": 6,
    "touch": 6,
    "hold": 4,
    "end": 8,
    "end_now": 4,
    "undelete": 8,
}
MODES = {
    pb.START_MODE_UNSPECIFIED: 40,
    pb.START_MODE_CONTINUE: 30,
    pb.START_MODE_FRESH: 15,
    pb.START_MODE_FAIL_IF_LIVE: 15,
}
#: Attempts of a call that is retried, and the percentage of calls that are.
TRIES, RETRIED_PERCENT = 4, 70
#: Attempts to connect, 0.3 s apart: a replica that was killed needs a while to start.
WAITS = 20
STORM = 6
HOLD_SECONDS = 8
#: Methods without a request id.
WITHOUT_REQUEST_ID = frozenset({"TouchSession", "PutHold", "ReleaseHold", "ListCheckpoints"})


class Callers:
    """The callers of one run, and the sessions that they know."""

    def __init__(self, client: RecordingClient, seed: int, keys: list[str]) -> None:
        self._client = client
        self._seed = seed
        self.keys = keys
        #: By key: the session ids in answers, the newest last.
        self._known: dict[str, list[str]] = defaultdict(list)
        #: By session: clicks on one session must not overlap.
        self._clicking: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def work(self, number: int, over: asyncio.Event) -> None:
        """Run one caller until `over` is set. The seed decides the operations, not their times."""
        dice = random.Random(f"{self._seed}:caller:{number}")
        name = f"c{number}"
        while not over.is_set():
            key = dice.choices(self.keys, self._key_weights())[0]
            weights = self._operation_weights(key)
            name_of_operation = dice.choices(list(weights), list(weights.values()))[0]
            operation: Callable[[random.Random, str, str], Awaitable[object]]
            operation = getattr(self, f"_{name_of_operation}")
            await operation(dice, name, key)
            await asyncio.sleep(dice.uniform(0, 0.1))

    async def settle(self, key: str) -> Call:
        """Start the key once more after the last fault, and click."""
        dice = random.Random(f"{self._seed}:last:{key}")
        answer = await self._repeated(dice, "last", key, "StartSession", tries=10, retried=True)
        if answer.ok:
            await self._click("last", answer)
        return answer

    def _key_weights(self) -> list[float]:
        """The weights of the keys: some see one caller at a time, others several at once."""
        return [1 / (number + 1) for number in range(len(self.keys))]

    def _operation_weights(self, key: str) -> dict[str, int]:
        """The operations for this key, with their weights."""
        return WEIGHTS

    # --- operations ----------------------------------------------------------------------------

    async def _start(self, dice: random.Random, name: str, key: str) -> None:
        mode = dice.choices(list(MODES), list(MODES.values()))[0]
        fields: dict[str, Any] = {"mode": mode}
        if dice.random() < 0.2:
            fields["min_continuity"] = dice.choice(
                [pb.CONTINUITY_MEMORY, pb.CONTINUITY_FILESYSTEM, pb.CONTINUITY_NONE]
            )
        answer = await self._repeated(dice, name, key, "StartSession", **fields)
        if answer.ok and answer.state == "ACTIVE":
            for _ in range(dice.choice([1, 2])):
                await self._click(name, answer)

    async def _visit(self, dice: random.Random, name: str, key: str) -> None:
        """Start, pause, and start again."""
        await self._start(dice, name, key)
        await self._pause(dice, name, key)
        await self._start(dice, name, key)

    async def _storm(self, dice: random.Random, name: str, key: str) -> None:
        """Several starts at once, at both replicas."""
        many = [
            self._repeated(random.Random(dice.random()), f"{name}.{n}", key, "StartSession")
            for n in range(STORM)
        ]
        answers = await asyncio.gather(*many)
        if answers[0].ok and answers[0].state == "ACTIVE":
            await self._click(name, answers[0])

    async def _pause(self, dice: random.Random, name: str, key: str) -> None:
        depth = dice.choice([pb.PAUSE_DEPTH_UNSPECIFIED, pb.PAUSE_DEPTH_STOPPED])
        await self._to_newest(dice, name, key, "PauseSession", depth=depth)

    async def _stop(self, dice: random.Random, name: str, key: str) -> None:
        await self._to_newest(dice, name, key, "StopSession")

    async def _resume(self, dice: random.Random, name: str, key: str) -> None:
        answer = await self._to_newest(dice, name, key, "ResumeSession")
        if answer is not None and answer.ok and answer.state == "ACTIVE":
            await self._click(name, answer)

    async def _touch(self, dice: random.Random, name: str, key: str) -> None:
        await self._to_newest(dice, name, key, "TouchSession")

    async def _hold(self, dice: random.Random, name: str, key: str) -> None:
        """Put a hold on the session; sometimes release it again."""
        held = {"name": "build", "ttl": Duration(seconds=HOLD_SECONDS)}
        await self._to_newest(dice, name, key, "PutHold", **held)
        if dice.random() < 0.3:
            await self._to_newest(dice, name, key, "ReleaseHold", name="build")

    async def _end(self, dice: random.Random, name: str, key: str) -> None:
        await self._to_newest(dice, name, key, "EndSession")

    async def _end_now(self, dice: random.Random, name: str, key: str) -> None:
        await self._to_newest(dice, name, key, "EndSession", now=True)

    async def _undelete(self, dice: random.Random, name: str, key: str) -> None:
        """Undelete one of the last few sessions, ended or not."""
        if self._known[key]:
            session = dice.choice(self._known[key][-3:])
            await self._repeated(dice, name, key, "UndeleteSession", session_id=session)

    # --- calls ---------------------------------------------------------------------------------

    async def _to_newest(
        self, dice: random.Random, name: str, key: str, method: str, /, **fields: Any
    ) -> Call | None:
        """Call a method for the newest known session of the key; None if none is known.

        Any: the fields of the request.
        """
        if not self._known[key]:
            return None
        session = self._known[key][-1]
        return await self._repeated(dice, name, key, method, session_id=session, **fields)

    async def _repeated(
        self,
        dice: random.Random,
        name: str,
        key: str,
        method: str,
        /,
        *,
        tries: int = TRIES,
        retried: bool | None = None,
        **fields: Any,
    ) -> Call:
        """Make a call and retry it with the same request id at the other replica while unclear.

        Some calls are repeated although they were answered. Any: the fields of the request.
        """
        if method == "StartSession":
            fields["key"] = session_key(key)
        if method not in WITHOUT_REQUEST_ID and (tries > TRIES or dice.random() < 0.8):
            fields["request_id"] = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        if retried is None:
            retried = dice.random() * 100 < RETRIED_PERCENT
        replica = dice.randrange(self._client.replicas)
        answer = await self._reached(name, key, method, replica, **fields)
        while (
            (answer.unclear or answer.unreached)
            and retried
            and tries > 1
            and "request_id" in fields
        ):
            # Without a reason no replica answered: one that was killed needs a while.
            await asyncio.sleep(0.2 if answer.reason else 0.6)
            tries -= 1
            replica = (replica + 1) % self._client.replicas
            answer = await self._reached(name, key, method, replica, **fields)
        if answer.ok and answer.answer_session and answer.answer_session not in self._known[key]:
            self._known[key].append(answer.answer_session)
        if "request_id" in fields and dice.random() < 0.1:
            replica = (replica + 1) % self._client.replicas
            await self._client.call(name, key, method, replica, **fields)
        return answer

    async def _reached(
        self, name: str, key: str, method: str, replica: int, /, **fields: Any
    ) -> Call:
        """Call this replica, or another one while it is down. Any: the fields of the request."""
        answer = await self._client.call(name, key, method, replica, **fields)
        for _ in range(WAITS):
            if not answer.unreached:
                break
            await asyncio.sleep(0.3)
            replica = (replica + 1) % self._client.replicas
            answer = await self._client.call(name, key, method, replica, **fields)
        return answer

    async def _click(self, name: str, opened: Call) -> None:
        async with self._clicking[opened.answer_session]:
            await self._client.click(name, opened)
