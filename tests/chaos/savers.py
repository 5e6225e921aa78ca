"""Callers who save state as well: checkpoints on demand, rollbacks, forks, pins and deletes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.chaos.callers import WEIGHTS, Callers
from tests.chaos.projects import recreates, saves, session_key, spec_of

if TYPE_CHECKING:
    import random

    from tests.chaos.history import Call
    from tests.chaos.wire import Wire

#: What is done at a key whose state is saved, and how often of a hundred.
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
    "saving_visit": 16,
    "there_and_back": 12,
    "rebuild": 8,
    "save": 4,
    "restore": 8,
    "listing": 3,
    "delete": 2,
    "pin": 1,
    "fork": 3,
}
#: How often the keys whose state is saved have their turn, beside the others.
SHARE = 0.45
#: Rollbacks are to one of the newest so many that a caller knows of.
RECENT = 4


class Savers(Callers):
    """The callers of one run, who also know which checkpoints there are."""

    def __init__(self, wire: Wire, seed: int, keys: list[str]) -> None:
        super().__init__(wire, seed, keys)
        #: The checkpoints that answers showed READY, by key and number.
        self._ready: dict[str, dict[int, str]] = defaultdict(dict)

    def _heat(self) -> list[float]:
        """Some keys see a caller at a time, others several at once; those whose state is saved have
        a share of their own.
        """
        heat = dict.fromkeys(self.keys, 0.0)
        for saving, share in ((False, 1 - SHARE), (True, SHARE)):
            ours = [key for key in self.keys if saves(key) == saving]
            parts = [1 / (number + 1) for number in range(len(ours))]
            heat |= {key: share * part / sum(parts) for key, part in zip(ours, parts, strict=True)}
        return list(heat.values())

    def _weights(self, key: str) -> dict[str, int]:
        return SAVING_WEIGHTS if saves(key) else WEIGHTS

    # --- deeds ---------------------------------------------------------------------------------

    async def _saving_visit(self, dice: random.Random, name: str, key: str) -> None:
        """Open, have all of it saved by a stop, and come back."""
        await self._start(dice, name, key)
        await self._stop(dice, name, key)
        await self._start(dice, name, key)

    async def _there_and_back(self, dice: random.Random, name: str, key: str) -> None:
        """Save, go on, and go back."""
        await self._start(dice, name, key)
        await self._save(dice, name, key)
        await self._start(dice, name, key)
        await self._restore(dice, name, key)

    async def _rebuild(self, dice: random.Random, name: str, key: str) -> None:
        """Ask for a container of another spec, where the policy makes one then."""
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
        """To one of the last few, and a click to see what came of it."""
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
        """Pin one; most are let go again."""
        answer = await self._to_one(dice, name, key, "PinCheckpoint", pinned=True)
        if answer is not None and answer.target and dice.random() < 0.8:
            target = answer.target
            await self._repeated(
                dice, name, key, "PinCheckpoint", checkpoint_id=target, pinned=False
            )

    async def _fork(self, dice: random.Random, name: str, key: str) -> None:
        """To the last key of the same kind, whose session is ended for it."""
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
        """A call about one of the key's checkpoints; None where none is known. Any: its fields."""
        if not self._ready[key]:
            return None
        number = dice.choice(sorted(self._ready[key]))
        checkpoint_id = self._ready[key][number]
        return await self._repeated(dice, name, key, method, checkpoint_id=checkpoint_id, **fields)

    def _learn(self, key: str, answer: Call) -> None:
        for shown in answer.checkpoints:
            if shown.state == "READY":
                self._ready[key][shown.number] = shown.checkpoint_id
