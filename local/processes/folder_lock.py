"""A lock on a folder that the kernel releases when the processes that hold it end."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class FolderLock:
    """The lock of one folder: an flock on the file `lock` in it.

    An flock belongs to the open file, not to the process. A child that inherits the descriptor
    therefore holds the lock too, and it is free only when all of them have closed it or ended. So
    the lock of a PostgreSQL's folder outlives a killed parent until the server has ended.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "lock"
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The descriptor, for a child to inherit. Raises RuntimeError while not acquired."""
        if self._descriptor is None:
            raise RuntimeError(f"{self._file} is not locked")
        return self._descriptor

    def acquire(self) -> bool:
        """Acquire the lock, and create the folder. False while another process holds it."""
        if self._descriptor is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Close our descriptor. Children that inherited it still hold the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
