"""The inside of a machine: its root file system, its environment and its processes."""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from local.fly import configs, images
from local.fly.mounts import Mount
from local.fly.processes import ChildProcess, Spawner
from local.fly.procfs import TCP_TABLE, write_tcp_tables
from local.fly.records import MachineRecord
from local.fly.wire import texts

BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"
"""Where Linux tells a boot from the next; a guest's own is answered to an exec of it."""

_HOST_ENV = ("PATH", "LANG", "LC_ALL", "TZ")


class ExecTimedOut(Exception):
    """A command run in the guest was killed because its time was over."""


@dataclass(frozen=True)
class ExecResult:
    """What a command left: its exit code or signal, and what it printed."""

    exit_code: int
    exit_signal: int
    stdout: bytes
    stderr: bytes


class Guest:
    """One boot of one machine: from its cold start until its processes are gone.

    Freezing and thawing keep the guest, its processes and its boot id; a new boot is a new guest.
    """

    def __init__(
        self,
        main: ChildProcess,
        boot_id: str,
        folder: Path,
        env: Mapping[str, str],
        spawner: Spawner,
        rewrite: Callable[[str], str],
        internal_port: int,
    ) -> None:
        self._rewrite = rewrite
        self._internal_port = internal_port
        self._spawner = spawner
        self.boot_id = boot_id
        self.main = main
        self.env = env
        self.port = int(env["PORT"])
        self.accepting = False
        self.stop_requested = False
        self._folder = folder
        self._execs: set[ChildProcess] = set()

    @classmethod
    def boot(
        cls,
        record: MachineRecord,
        folder: Path,
        boot_id: str,
        port: int,
        extra_images: Mapping[str, tuple[str, ...]],
        spawner: Spawner,
        mount: Mount | None = None,
    ) -> "Guest":
        """Start the machine's command in its root file system, which `lay_out` has made.

        Raises `UnknownImage` when there is no command. What it prints goes to `guest.log`.
        """
        rewrite = mount.rewrite if mount else _as_it_is
        argv = [rewrite(part) for part in images.command(record.config, extra_images)]
        rootfs = folder / "rootfs"
        env = environment(record, rootfs, port, rewrite)
        with (folder / "guest.log").open("ab") as log:
            main = spawner.spawn(argv, cwd=rootfs, env=env, stdout=log, stderr=log)
        internal_port = configs.internal_port(record.config)
        return cls(main, boot_id, folder, env, spawner, rewrite, internal_port)

    def freeze(self) -> None:
        """Stop every process of the guest where it stands; memory is kept."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen guest go on."""
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """End every process at once; the boot is over on purpose."""
        self.stop_requested = True
        self._signal_all(signal.SIGKILL)

    async def stop(self, signal_number: int, timeout_s: float) -> int:
        """Ask the main process to end, kill it when `timeout_s` is over; its exit code."""
        self.stop_requested = True
        self.main.signal(signal_number)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.main.wait(), timeout_s)
        self.kill()
        return await self.main.wait()

    async def end(self) -> None:
        """Kill and wait until nothing is left."""
        self.kill()
        await self.main.wait()

    async def exec(self, argv: list[str], stdin: bytes, timeout_s: float) -> ExecResult:
        """Run a command beside the main process, in the same folder and environment."""
        if _asks_boot_id(argv):
            return ExecResult(0, 0, self.boot_id.encode() + b"\n", b"")
        # Guests share the host's /proc: send whoever names the file to this boot's own.
        argv = [part.replace(BOOT_ID_PATH, str(self._folder / "boot_id")) for part in argv]
        if any(TCP_TABLE in part for part in argv):
            own = str(write_tcp_tables(self._folder, self.port, self._internal_port))
            argv = [part.replace(TCP_TABLE, own) for part in argv]
        argv = [self._rewrite(part) for part in argv]
        # Memory and not pipes: a process left behind that holds a pipe open would hold us too.
        with _memory_file(stdin) as given, _memory_file() as out, _memory_file() as err:
            process = self._spawner.spawn(
                argv,
                cwd=self._folder / "rootfs",
                env=self.env,
                stdin=given,
                stdout=out,
                stderr=err,
            )
            code = await self._finish(process, timeout_s)
            out.seek(0)
            err.seek(0)
            return ExecResult(max(code, 0), max(-code, 0), out.read(), err.read())

    async def _finish(self, process: ChildProcess, timeout_s: float) -> int:
        self._execs.add(process)
        try:
            return await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            raise ExecTimedOut from None
        finally:
            process.signal_group(signal.SIGKILL)
            await process.wait()
            self._execs.discard(process)

    def _signal_all(self, number: int) -> None:
        for process in (self.main, *self._execs):
            process.signal_group(number)


def environment(
    record: MachineRecord, rootfs: Path, port: int, rewrite: Callable[[str], str]
) -> dict[str, str]:
    """What a guest finds in its environment (Fly docs: the runtime environment).

    `PORT` stands for the service's `internal_port`: guests share the host's network, so two of
    them could not listen on the same one.
    """
    image = record.image
    return {
        **{name: os.environ[name] for name in _HOST_ENV if name in os.environ},
        "HOME": str(rootfs),
        "PRIMARY_REGION": record.region,
        **{name: rewrite(value) for name, value in texts(record.config, "env").items()},
        "PORT": str(port),
        "FLY_APP_NAME": record.app,
        "FLY_MACHINE_ID": record.id,
        "FLY_ALLOC_ID": record.id,
        "FLY_REGION": record.region,
        "FLY_PUBLIC_IP": "127.0.0.1",
        "FLY_IMAGE_REF": f"{image.registry}/{image.repository}:{image.tag}",
        "FLY_MACHINE_VERSION": record.instance_id,
        "FLY_PRIVATE_IP": record.private_ip,
        "FLY_PROCESS_GROUP": record.metadata.get("fly_process_group", "app"),
        "FLY_VM_MEMORY_MB": str(record.memory_mb),
    }


def lay_out(folder: Path, boot_id: str, *, keep_rootfs: bool, mount: Mount | None = None) -> None:
    """Give a boot its root file system, the one there was or an empty one, and its boot id."""
    if not keep_rootfs:
        clear(folder)
    (folder / "rootfs").mkdir(parents=True, exist_ok=True)
    if mount is not None:
        mount.place(folder / "rootfs")
    (folder / "boot_id").write_text(boot_id + "\n")


def clear(folder: Path) -> None:
    """Remove a machine's root file system."""
    shutil.rmtree(folder / "rootfs", ignore_errors=True)


def _as_it_is(words: str) -> str:
    return words


def _memory_file(content: bytes = b"") -> IO[bytes]:
    """An unnamed file in memory, read from its start."""
    file = os.fdopen(os.memfd_create("exec"), "r+b", buffering=0)
    file.write(content)
    file.seek(0)
    return file


def _asks_boot_id(argv: list[str]) -> bool:
    if len(argv) == 3 and argv[0].rpartition("/")[2] in ("sh", "bash") and argv[1] == "-c":
        with contextlib.suppress(ValueError):
            argv = shlex.split(argv[2])
    return len(argv) == 2 and argv[0].rpartition("/")[2] == "cat" and argv[1] == BOOT_ID_PATH
