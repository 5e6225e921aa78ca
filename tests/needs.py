"""What some tests need beyond Python, make and a C compiler: programs, and disks."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tools.fetch import TOOLS, find

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def needs(name: str) -> str:
    """The path of a program of `tools/fetch`; skips the test if this machine does not have it.

    Raises KeyError for a program that `make tools` does not know: add it to the table there.
    """
    program = find(TOOLS[name])
    if program is None:
        pytest.skip(f"no {name} on this machine; `make tools` fetches it", allow_module_level=True)
    return str(program)


@contextmanager
def small_disk(folder: Path, size: int) -> Generator[None]:
    """A disk of its own of `size` bytes at the folder, in memory, while the context is open. Skips
    the test if this machine lets nobody mount one.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "roost-tests", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
