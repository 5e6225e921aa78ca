"""A lock on a folder that ends with the processes that hold it, however they end."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class FolderLock:
    """The lock of one folder: an flock on the file `lock` in it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "lock"
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """For a child to inherit: the lock is free when all who have it have ended."""
        if self._descriptor is None:
            raise RuntimeError(f"{self._file} is not locked")
        return self._descriptor

    def acquire(self) -> bool:
        """Take it, making the folder when there is none. False while another has it."""
        if self._descriptor is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let go of our share of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
