"""Emulators as child processes, used like any other provider: only over HTTP."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TOKEN = "conformance"

FAST = {
    "create_ms": "20",
    "start_ms": "10",
    "resume_ms": "10",
    "suspend_ms": "40",
    "replace_ms": "40",
    "destroy_ms": "20",
    "restart_delay_ms": "20",
    "volume_fill_ms": "40",
    "volume_release_ms": "60",
    "snapshot_ms": "60",
}
"""Transitions that take a moment, so that they are there, and no longer."""

FOREVER = "3600000"
"""The duration of a transition, in ms, in the middle of which a case acts; at Fly every one lasts
long enough."""


@dataclass(frozen=True)
class Running:
    """The addresses of a running emulator."""

    api_url: str
    proxy_url: str
    pid: int


@contextlib.contextmanager
def emulator(data: Path, settings: Mapping[str, str], *, limits: bool = False) -> Iterator[Running]:
    """Run an emulator until the block ends, on a free port, without rate limits by default."""
    pairs = [f"--set={name}={value}" for name, value in settings.items()]
    words = ["--port=0", "--proxy-port=0", f"--token={TOKEN}"]
    words += [] if limits else ["--no-limits"]
    child = subprocess.Popen(
        [sys.executable, "-m", "local", "fly", f"--data={data}", *words, *pairs],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        line = json.loads(child.stdout.readline() or "{}")
        assert line, f"the emulator ended with status {child.wait()}"
        yield Running(line["api_url"], line["proxy_url"], line["pid"])
    finally:
        child.terminate()
        with child:
            child.wait(20)
