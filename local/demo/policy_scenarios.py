"""The demo's policy scenarios: click twice, stop, start, under each persistence policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from local.demo.calls import ScenarioAborted
from local.demo.policy_steps import Choice, PolicySteps
from local.demo.report import Line, table
from roost.container.v1.container_service_pb2 import ContainerSpec, StateHook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from local.demo.preview import Previews
    from local.demo.report import Report
    from local.demo.session_client import SessionClient
    from local.stack.stack import Stack

    Scenario = Callable[[PolicySteps], Awaitable[None]]

IMAGE = "roost/counter"
IN_MEMORY = ContainerSpec(image=IMAGE)
IN_A_FILE = ContainerSpec(image=IMAGE, env={"COUNTER_FILE": "count"})
BEHIND_A_HOOK = ContainerSpec(image=IMAGE, state_hook=StateHook(http_path="/state"))

SUSPENDED = "PAUSED: machine suspended with its memory"
SAVED = "PAUSED: state saved, no machine"
ENDED = "ENDED"


class PolicyScenarios:
    """Plays one scenario per policy, each in its own project, against a running stack."""

    def __init__(
        self, stack: Stack, client: SessionClient, previews: Previews, report: Report
    ) -> None:
        self._stack = stack
        self._client = client
        self._previews = previews
        self._report = report
        self._lines: list[Line] = []

    async def play(self) -> None:
        """Play all scenarios. An unexpected error is a wrong value, and ends only its scenario."""
        for policy in SCENARIOS:
            await self.play_one(policy)

    async def play_one(self, policy: str) -> None:
        """Play the scenario of one policy, which is a key of SCENARIOS."""
        about, scenario = SCENARIOS[policy]
        self._report.say("")
        self._report.say(f"{policy}: {about}")
        steps = PolicySteps(policy, self._stack, self._client, self._previews, self._report)
        try:
            await scenario(steps)
            self._lines += steps.lines
        except ScenarioAborted:
            self._lines += [*steps.lines, Line(policy, "(aborted)", "", "")]

    def show_table(self) -> None:
        """Print a table of the stops and starts of all scenarios played."""
        self._report.say("")
        self._report.say("Two clicks, then a stop and a start, under each policy:")
        self._report.say("")
        for line in table(self._lines):
            self._report.say(line)


async def reuse(steps: PolicySteps) -> None:
    """A running session is reused; a stop ends it."""
    await steps.set_policy(IN_A_FILE)
    session = await steps.begin()
    await steps.start("REUSED", "MEMORY", counter=2, same_as=session)
    await steps.stop(session, ENDED)
    await steps.start("CREATED", "NONE", counter=0)


async def hibernate(steps: PolicySteps) -> None:
    """A stop suspends the machine, and a start resumes it."""
    await steps.set_policy(IN_MEMORY)
    session = await steps.begin()
    await steps.stop(session, SUSPENDED)
    await steps.start("RESUMED", "MEMORY", counter=2, same_as=session)


async def checkpoint(steps: PolicySteps) -> None:
    """A stop saves the state and destroys the machine; a start restores it."""
    await steps.set_policy(BEHIND_A_HOOK)
    session = await steps.begin()
    await steps.stop(session, SAVED)
    await steps.machine_is(session, "destroyed")
    restored = await steps.start("RESTORED", "CHECKPOINT", counter=2, same_as=session)
    await steps.machine_is(restored, "started", other_than=session)


async def ask(steps: PolicySteps) -> None:
    """Each start asks the user; each choice token can be used once."""
    await steps.set_policy(IN_MEMORY)
    session = await steps.begin()
    await steps.stop(session, SUSPENDED)
    token = (await steps.expect_choice({"CONTINUE": "MEMORY", "FRESH": "NONE"}))["CONTINUE"]
    choice = Choice("CONTINUE", token)
    await steps.start("RESUMED", "MEMORY", counter=2, same_as=session, choice=choice)
    await steps.expect_used_token(choice, "CHOICE_TOKEN_USED")
    await steps.stop(session, SUSPENDED)
    token = (await steps.expect_choice({"CONTINUE": "MEMORY", "FRESH": "NONE"}))["FRESH"]
    await steps.start("CREATED", "NONE", counter=0, choice=Choice("FRESH", token))


async def ephemeral(steps: PolicySteps) -> None:
    """Every start creates a session; nothing is preserved."""
    await steps.set_policy(IN_A_FILE)
    await steps.begin()
    session = await steps.start("CREATED", "NONE", counter=0)
    await steps.click_twice(session)
    await steps.stop(session, ENDED)
    await steps.start("CREATED", "NONE", counter=0)


SCENARIOS: Mapping[str, tuple[str, Scenario]] = {
    "REUSE": ("a running session is reused; a stop ends it. The count is in a file.", reuse),
    "HIBERNATE": (
        "a stop suspends the machine with its memory. The count is in memory.",
        hibernate,
    ),
    "CHECKPOINT": (
        "a stop saves the state through the app's hook and destroys the machine.",
        checkpoint,
    ),
    "ASK": ("as HIBERNATE, but the user chooses at each start. The count is in memory.", ask),
    "EPHEMERAL": (
        "every start creates a new session. The count is in a file and is lost.",
        ephemeral,
    ),
}
"""Policy → its description, and its scenario."""
