"""What a run is told as."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.chaos.audit import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.chaos.history import Call
    from tests.chaos.run import Result


def told(result: Result) -> str:
    """The run in figures; of each violation's key the whole history."""
    lines = [f"seed {result.seed}: {verdict(result)}, {result.seconds:.0f} s"]
    lines += ["  settings: " + ", ".join(_chosen(result))]
    lines += ["  operations:", *_operations(result.history.calls)]
    if result.nemesis is not None:
        lines.append("  faults of the provider: " + _counted(result.nemesis.deeds.fired))
        lines.append("  done to the stack: " + _counted(result.nemesis.deeds.done))
        lines.append("  died at points: " + _counted(result.nemesis.deeds.killed_at))
    lines.append("  checkpoints: " + _counted(_checkpoints(result)))
    outage, key = longest_outage(result.history.by_key())
    lines.append(f"  longest from a key's first failure to its next answer: {outage:.1f} s ({key})")
    lines.append(f"  quiet {result.quiet_after:.1f} s after the last fault")
    for violation in result.violations:
        lines.append(f"  VIOLATION {violation.rule} {violation.key}: {violation.text}")
        if violation.call is not None:
            lines.append(violation.call.row(result.zero))
    for key in sorted({violation.key for violation in result.violations} - {""}):
        lines += [f"  history of {key}:", *_history(result, key)]
    if result.violations and result.nemesis is not None:
        lines.append("  what was done to the stack:")
        lines += [f"  {at - result.zero:8.3f} {text}" for at, text in result.nemesis.deeds.log]
    return "\n".join(lines)


def verdict(result: Result) -> str:
    """One word, or how many."""
    count = len(result.violations)
    return "no violation" if not count else f"{count} violations"


def longest_outage(histories: dict[str, list[Call]]) -> tuple[float, str]:
    """The longest time between a key's first unclear call and its next answer, and the key."""
    longest, worst = 0.0, "none"
    for key, calls in histories.items():
        since: float | None = None
        for call in sorted(calls, key=lambda each: each.ended):
            if call.method == "click" or not call.status:
                continue
            if call.unclear or call.unreached:
                since = call.began if since is None else since
            elif since is not None:
                if call.ended - since > longest:
                    longest, worst = call.ended - since, key
                since = None
    return longest, worst


def _chosen(result: Result) -> list[str]:
    names = ("ROOST_FRESHNESS_WINDOW", "ROOST_IDLE_TIMEOUT", "ROOST_DEEPEN_AFTER")
    return [f"{name}={result.settings.get(name, '')}" for name in names]


def _operations(calls: Iterable[Call]) -> list[str]:
    found: dict[str, Counter[str]] = {}
    for call in calls:
        name = call.method
        if call.mode:
            name += f" {call.mode}"
        name += " now" if call.now else ""
        result = call.reason or (call.outcome if call.ok and call.outcome else call.status)
        result = "not reached" if call.unreached else result
        found.setdefault(name, Counter())[result or "unanswered"] += 1
    return [f"    {name}: {_counted(counts)}" for name, counts in sorted(found.items())]


def _checkpoints(result: Result) -> Counter[str]:
    """How many came to be, by why they were taken; and how many did not."""
    return Counter(
        kept.reason if kept.ready < NEVER else f"never READY ({kept.failure or 'left'})"
        for kept in result.audit.kept.values()
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _history(result: Result, key: str) -> list[str]:
    return [call.row(result.zero) for call in result.history.by_key().get(key, [])]
