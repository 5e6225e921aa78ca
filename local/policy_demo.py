"""The demo's second part: click to 2, stop, start, under each policy that a project can have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from local.demo_calls import StoryOver
from local.policy_steps import Answer, PolicySteps
from local.policy_table import Line, table
from roost.container.v1.container_service_pb2 import ContainerSpec, StateHook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from local.client import SessionClient
    from local.preview import Previews
    from local.report import Report
    from local.stack import Stack

    Story = Callable[[PolicySteps], Awaitable[None]]

IMAGE = "roost/counter"
IN_MEMORY = ContainerSpec(image=IMAGE)
IN_A_FILE = ContainerSpec(image=IMAGE, env={"COUNTER_FILE": "count"})
BEHIND_A_HOOK = ContainerSpec(image=IMAGE, state_hook=StateHook(http_path="/state"))

FROZEN = "PAUSED: machine frozen with its memory"
SAVED = "PAUSED: state saved, no machine"
OVER = "ENDED"


class PolicyDemo:
    """Plays one story for each policy, each in a project of its own, against a running stack."""

    def __init__(
        self, stack: Stack, client: SessionClient, previews: Previews, report: Report
    ) -> None:
        self._stack = stack
        self._client = client
        self._previews = previews
        self._report = report
        self._lines: list[Line] = []

    async def play(self) -> None:
        """All stories. An error that is no part of one is a wrong value and ends that one alone."""
        for policy in STORIES:
            await self.play_one(policy)

    async def play_one(self, policy: str) -> None:
        """The story of one policy: a key of STORIES."""
        about, story = STORIES[policy]
        self._report.say("")
        self._report.say(f"{policy}: {about}")
        steps = PolicySteps(policy, self._stack, self._client, self._previews, self._report)
        try:
            await story(steps)
            self._lines += steps.lines
        except StoryOver:
            self._lines += [*steps.lines, Line(policy, "(not played to its end)", "", "")]

    def show_table(self) -> None:
        """What the stops meant and the starts said, of all stories that were played."""
        self._report.say("")
        self._report.say("Two clicks, then a stop and a start, under each policy:")
        self._report.say("")
        for line in table(self._lines):
            self._report.say(line)


async def reuse(steps: PolicySteps) -> None:
    """There while it runs, and over with a stop."""
    await steps.set_policy(IN_A_FILE)
    session = await steps.begin()
    await steps.start("REUSED", "MEMORY", counter=2, same_as=session)
    await steps.stop(session, OVER)
    await steps.start("CREATED", "NONE", counter=0)


async def hibernate(steps: PolicySteps) -> None:
    """Frozen at a stop, and thawed at a start."""
    await steps.set_policy(IN_MEMORY)
    session = await steps.begin()
    await steps.stop(session, FROZEN)
    await steps.start("RESUMED", "MEMORY", counter=2, same_as=session)


async def checkpoint(steps: PolicySteps) -> None:
    """The machine goes, the state stays."""
    await steps.set_policy(BEHIND_A_HOOK)
    session = await steps.begin()
    await steps.stop(session, SAVED)
    await steps.machine_is(session, "destroyed")
    restored = await steps.start("RESTORED", "CHECKPOINT", counter=2, same_as=session)
    await steps.machine_is(restored, "started", other_than=session)


async def ask(steps: PolicySteps) -> None:
    """Each start is a question; each answer counts once."""
    await steps.set_policy(IN_MEMORY)
    session = await steps.begin()
    await steps.stop(session, FROZEN)
    token = (await steps.asked({"CONTINUE": "MEMORY", "FRESH": "NONE"}))["CONTINUE"]
    answer = Answer("CONTINUE", token)
    await steps.start("RESUMED", "MEMORY", counter=2, same_as=session, answer=answer)
    await steps.refused_again(answer, "CHOICE_TOKEN_USED")
    await steps.stop(session, FROZEN)
    token = (await steps.asked({"CONTINUE": "MEMORY", "FRESH": "NONE"}))["FRESH"]
    await steps.start("CREATED", "NONE", counter=0, answer=Answer("FRESH", token))


async def ephemeral(steps: PolicySteps) -> None:
    """Nothing is ever kept."""
    await steps.set_policy(IN_A_FILE)
    await steps.begin()
    session = await steps.start("CREATED", "NONE", counter=0)
    await steps.click_twice(session)
    await steps.stop(session, OVER)
    await steps.start("CREATED", "NONE", counter=0)


STORIES: Mapping[str, tuple[str, Story]] = {
    "REUSE": ("a running session is used again; a stop ends it. The count is in a file.", reuse),
    "HIBERNATE": ("a stop freezes the machine with its memory, where the count is.", hibernate),
    "CHECKPOINT": (
        "a stop saves the state by the app's hook, and destroys the machine.",
        checkpoint,
    ),
    "ASK": ("as HIBERNATE, and the user is asked at a start. The count is in memory.", ask),
    "EPHEMERAL": ("every start is a new one. The count is in a file, and goes.", ephemeral),
}
"""What each policy is about, and its story."""
