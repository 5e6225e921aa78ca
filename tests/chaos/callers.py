"""What callers do: starts of every mode, pauses, ends and all the rest, as the seed has it."""

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
    from tests.chaos.wire import Wire

#: What a caller does next, and how often of a hundred.
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
#: How often a call that may be tried again is, and in how many of a hundred cases at all.
TRIES, PATIENT = 4, 70
#: How often a call is tried that nobody was there for, 0.3 s apart: replicas need a while to start.
WAITS = 20
STORM = 6
HOLD_SECONDS = 8
#: Calls without a request id.
UNNAMED = frozenset({"TouchSession", "PutHold", "ReleaseHold", "ListCheckpoints"})


class Callers:
    """The callers of one run, and what they know of each key."""

    def __init__(self, wire: Wire, seed: int, keys: list[str]) -> None:
        self._wire = wire
        self._seed = seed
        self.keys = keys
        #: The sessions that answers named at a key, the newest last.
        self._known: dict[str, list[str]] = defaultdict(list)
        #: Clicks on one session come one after the other.
        self._clicking: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def work(self, number: int, over: asyncio.Event) -> None:
        """Be one caller until it is over. What it does is the seed's; when is not."""
        dice = random.Random(f"{self._seed}:caller:{number}")
        name = f"c{number}"
        while not over.is_set():
            key = dice.choices(self.keys, self._heat())[0]
            weights = self._weights(key)
            what = dice.choices(list(weights), list(weights.values()))[0]
            deed: Callable[[random.Random, str, str], Awaitable[object]]
            deed = getattr(self, f"_{what}")
            await deed(dice, name, key)
            await asyncio.sleep(dice.uniform(0, 0.1))

    async def settle(self, key: str) -> Call:
        """Start the key once more when all is well, and click."""
        dice = random.Random(f"{self._seed}:last:{key}")
        answer = await self._repeated(dice, "last", key, "StartSession", tries=10, patient=True)
        if answer.ok:
            await self._click("last", answer)
        return answer

    def _heat(self) -> list[float]:
        """Some keys see a caller at a time, others several at once."""
        return [1 / (number + 1) for number in range(len(self.keys))]

    def _weights(self, key: str) -> dict[str, int]:
        """What is done at this key, and how often."""
        return WEIGHTS

    # --- deeds ---------------------------------------------------------------------------------

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
        """Open, leave, and come back."""
        await self._start(dice, name, key)
        await self._pause(dice, name, key)
        await self._start(dice, name, key)

    async def _storm(self, dice: random.Random, name: str, key: str) -> None:
        """Several at once, at both replicas."""
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
        """Keep it from going idle; now and then give that back."""
        held = {"name": "build", "ttl": Duration(seconds=HOLD_SECONDS)}
        await self._to_newest(dice, name, key, "PutHold", **held)
        if dice.random() < 0.3:
            await self._to_newest(dice, name, key, "ReleaseHold", name="build")

    async def _end(self, dice: random.Random, name: str, key: str) -> None:
        await self._to_newest(dice, name, key, "EndSession")

    async def _end_now(self, dice: random.Random, name: str, key: str) -> None:
        await self._to_newest(dice, name, key, "EndSession", now=True)

    async def _undelete(self, dice: random.Random, name: str, key: str) -> None:
        """Any of the last few, ended or not."""
        if self._known[key]:
            session = dice.choice(self._known[key][-3:])
            await self._repeated(dice, name, key, "UndeleteSession", session_id=session)

    # --- calls ---------------------------------------------------------------------------------

    async def _to_newest(
        self, dice: random.Random, name: str, key: str, method: str, /, **fields: Any
    ) -> Call | None:
        """A call about the newest session known at the key; None where none is known."""
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
        patient: bool | None = None,
        **fields: Any,
    ) -> Call:
        """A call, tried again with the same id at the other replica while it is unclear; now and
        then repeated although it was answered. Any: whatever fields the method has.
        """
        if method == "StartSession":
            fields["key"] = session_key(key)
        if method not in UNNAMED and (tries > TRIES or dice.random() < 0.8):
            fields["request_id"] = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        if patient is None:
            patient = dice.random() * 100 < PATIENT
        replica = dice.randrange(self._wire.replicas)
        answer = await self._reached(name, key, method, replica, **fields)
        while (
            (answer.unclear or answer.unreached)
            and patient
            and tries > 1
            and "request_id" in fields
        ):
            # Nobody answered: a replica that is down needs a while.
            await asyncio.sleep(0.2 if answer.reason else 0.6)
            tries -= 1
            replica = (replica + 1) % self._wire.replicas
            answer = await self._reached(name, key, method, replica, **fields)
        if answer.ok and answer.named and answer.named not in self._known[key]:
            self._known[key].append(answer.named)
        if "request_id" in fields and dice.random() < 0.1:
            replica = (replica + 1) % self._wire.replicas
            await self._wire.call(name, key, method, replica, **fields)
        return answer

    async def _reached(
        self, name: str, key: str, method: str, replica: int, /, **fields: Any
    ) -> Call:
        """A call to this replica, or to another one while that is not there. Any: its fields."""
        answer = await self._wire.call(name, key, method, replica, **fields)
        for _ in range(WAITS):
            if not answer.unreached:
                break
            await asyncio.sleep(0.3)
            replica = (replica + 1) % self._wire.replicas
            answer = await self._wire.call(name, key, method, replica, **fields)
        return answer

    async def _click(self, name: str, opened: Call) -> None:
        async with self._clicking[opened.named]:
            await self._wire.click(name, opened)
