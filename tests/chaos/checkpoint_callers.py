"""Callers that also use checkpoints: create, restore, fork, pin, list and delete."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.chaos.callers import WEIGHTS, Callers
from tests.chaos.projects import recreates, saves, session_key, spec_of

if TYPE_CHECKING:
    import random

    from tests.chaos.history import Call
    from tests.chaos.recording_client import RecordingClient

#: The operations for a key whose state is saved, with their weights.
SAVING_WEIGHTS = {
    "start": 14,
    "visit": 8,
    "storm": 2,
    "pause": 7,
    "stop": 10,
    "resume": 3,
    "touch": 1,
    "end": 2,
    "end_now": 1,
    "undelete": 3,
    "stop_and_restart": 16,
    "save_and_roll_back": 12,
    "rebuild": 8,
    "save": 4,
    "restore": 8,
    "listing": 3,
    "delete": 2,
    "pin": 1,
    "fork": 3,
}
#: The share of operations that go to keys whose state is saved.
SHARE = 0.45
#: A rollback restores one of this many newest known checkpoints.
RECENT = 4


class CheckpointCallers(Callers):
    """The callers of one run, which also know the checkpoints of each key."""

    def __init__(self, client: RecordingClient, seed: int, keys: list[str]) -> None:
        super().__init__(client, seed, keys)
        #: By key and number: the ids of checkpoints that answers showed READY.
        self._ready: dict[str, dict[int, str]] = defaultdict(dict)

    def _key_weights(self) -> list[float]:
        """The weights of the keys; SHARE of the total is for keys whose state is saved."""
        heat = dict.fromkeys(self.keys, 0.0)
        for saving, share in ((False, 1 - SHARE), (True, SHARE)):
            same_kind = [key for key in self.keys if saves(key) == saving]
            parts = [1 / (number + 1) for number in range(len(same_kind))]
            heat |= {
                key: share * part / sum(parts) for key, part in zip(same_kind, parts, strict=True)
            }
        return list(heat.values())

    def _operation_weights(self, key: str) -> dict[str, int]:
        return SAVING_WEIGHTS if saves(key) else WEIGHTS

    # --- operations ----------------------------------------------------------------------------

    async def _stop_and_restart(self, dice: random.Random, name: str, key: str) -> None:
        """Start, stop, which saves the state, and start again."""
        await self._start(dice, name, key)
        await self._stop(dice, name, key)
        await self._start(dice, name, key)

    async def _save_and_roll_back(self, dice: random.Random, name: str, key: str) -> None:
        """Save, continue, and roll back."""
        await self._start(dice, name, key)
        await self._save(dice, name, key)
        await self._start(dice, name, key)
        await self._restore(dice, name, key)

    async def _rebuild(self, dice: random.Random, name: str, key: str) -> None:
        """Start with another spec, if the policy recreates the container then."""
        await self._start(dice, name, key)
        if not recreates(key):
            return
        spec = spec_of(COLOUR=dice.choice(["red", "blue"]))
        answer = await self._repeated(dice, name, key, "StartSession", spec=spec)
        if answer.ok and answer.state == "ACTIVE":
            await self._click(name, answer)

    async def _save(self, dice: random.Random, name: str, key: str) -> None:
        answer = await self._to_newest(dice, name, key, "CreateCheckpoint")
        if answer is not None:
            self._learn(key, answer)

    async def _restore(self, dice: random.Random, name: str, key: str) -> None:
        """Roll back to one of the newest checkpoints, and click to check it."""
        if not self._ready[key]:
            return
        number = dice.choice(sorted(self._ready[key])[-RECENT:])
        answer = await self._to_newest(dice, name, key, "RestoreCheckpoint", number=number)
        if answer is None:
            return
        self._learn(key, answer)
        if answer.ok and answer.state == "ACTIVE":
            for _ in range(dice.choice([1, 2, 3])):
                await self._click(name, answer)

    async def _listing(self, dice: random.Random, name: str, key: str) -> None:
        answer = await self._repeated(dice, name, key, "ListCheckpoints", key=session_key(key))
        if answer.ok:
            self._ready[key].clear()
            self._learn(key, answer)

    async def _delete(self, dice: random.Random, name: str, key: str) -> None:
        await self._to_one(dice, name, key, "DeleteCheckpoint")

    async def _pin(self, dice: random.Random, name: str, key: str) -> None:
        """Pin one checkpoint; unpin it again in most cases."""
        answer = await self._to_one(dice, name, key, "PinCheckpoint", pinned=True)
        if answer is not None and answer.checkpoint_id and dice.random() < 0.8:
            checkpoint_id = answer.checkpoint_id
            await self._repeated(
                dice, name, key, "PinCheckpoint", checkpoint_id=checkpoint_id, pinned=False
            )

    async def _fork(self, dice: random.Random, name: str, key: str) -> None:
        """Fork to the last key of the same kind, after ending its session."""
        kind = key.partition("-")[0]
        other = max(each for each in self.keys if each.startswith(kind))
        if other == key or not self._ready[key]:
            return
        await self._end(dice, name, other)
        number = dice.choice(sorted(self._ready[key])[-RECENT:])
        checkpoint_id, to = self._ready[key][number], session_key(other)
        answer = await self._repeated(
            dice, name, other, "ForkSession", checkpoint_id=checkpoint_id, key=to
        )
        if answer.ok and answer.state == "ACTIVE":
            await self._click(name, answer)

    # --- calls ---------------------------------------------------------------------------------

    async def _to_one(
        self, dice: random.Random, name: str, key: str, method: str, /, **fields: Any
    ) -> Call | None:
        """Call a method for one of the key's checkpoints; None if none is known.

        Any: the fields of the request.
        """
        if not self._ready[key]:
            return None
        number = dice.choice(sorted(self._ready[key]))
        checkpoint_id = self._ready[key][number]
        return await self._repeated(dice, name, key, method, checkpoint_id=checkpoint_id, **fields)

    def _learn(self, key: str, answer: Call) -> None:
        for shown in answer.checkpoints:
            if shown.state == "READY":
                self._ready[key][shown.number] = shown.checkpoint_id
