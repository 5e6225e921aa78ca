"""The report of a run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.chaos.checkpoint_audit import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.chaos.history import Call
    from tests.chaos.run import Result


def report_text(result: Result) -> str:
    """The figures of a run, and the whole history of every key with a violation."""
    lines = [f"seed {result.seed}: {verdict(result)}, {result.seconds:.0f} s"]
    lines += ["  settings: " + ", ".join(_chosen(result))]
    lines += ["  operations:", *_operations(result.history.calls)]
    if result.nemesis is not None:
        lines.append("  faults of the provider: " + _counted(result.nemesis.stack_faults.fired))
        lines.append("  faults of the stack: " + _counted(result.nemesis.stack_faults.done))
        lines.append("  deaths at failpoints: " + _counted(result.nemesis.stack_faults.killed_at))
    lines.append("  checkpoints: " + _counted(_checkpoints(result)))
    outage, key = longest_outage(result.history.by_key())
    lines.append(
        f"  longest time from a key's first failure to its next answer: {outage:.1f} s ({key})"
    )
    lines.append(f"  converged {result.converged_after:.1f} s after the last fault")
    for violation in result.violations:
        lines.append(f"  VIOLATION {violation.rule} {violation.key}: {violation.text}")
        if violation.call is not None:
            lines.append(violation.call.row(result.zero))
    for key in sorted({violation.key for violation in result.violations} - {""}):
        lines += [f"  history of {key}:", *_history(result, key)]
    if result.violations and result.nemesis is not None:
        lines.append("  faults in order:")
        lines += [
            f"  {at - result.zero:8.3f} {text}" for at, text in result.nemesis.stack_faults.log
        ]
    return "\n".join(lines)


def verdict(result: Result) -> str:
    """The number of violations as text."""
    count = len(result.violations)
    return "no violation" if not count else f"{count} violations"


def longest_outage(histories: dict[str, list[Call]]) -> tuple[float, str]:
    """The longest time from a key's first unclear call to its next answer, and the key."""
    longest, worst = 0.0, "none"
    for key, calls in histories.items():
        failing_since: float | None = None
        for call in sorted(calls, key=lambda each: each.ended):
            if call.method == "click" or not call.status:
                continue
            if call.unclear or call.unreached:
                failing_since = call.began if failing_since is None else failing_since
            elif failing_since is not None:
                if call.ended - failing_since > longest:
                    longest, worst = call.ended - failing_since, key
                failing_since = None
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
    """How many checkpoints became READY, by reason, and how many did not."""
    return Counter(
        kept.reason if kept.ready < NEVER else f"never READY ({kept.failure or 'left'})"
        for kept in result.audit.checkpoints.values()
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _history(result: Result, key: str) -> list[str]:
    return [call.row(result.zero) for call in result.history.by_key().get(key, [])]
