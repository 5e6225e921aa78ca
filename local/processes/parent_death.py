"""The program between fork and exec of a child: it executes a command that dies with its parent.

Run by its path, with the standard library only:

    python -I -S parent_death.py PARENT_PID DEATH_SIGNAL keep|drop COMMAND...

It is a program of its own and not a `preexec_fn`: the parent has threads, gRPC's among others, and
Python code that runs between fork and exec in a process with threads can deadlock.

The order of its steps is forced:

1. Enter the user namespace, if asked to. This changes credentials.
2. PR_SET_PDEATHSIG: ask the kernel to send us a signal when our parent ends. It comes after step 1
   because a change of credentials clears the request. It survives exec unless the executed file is
   setuid, which none of ours is.
3. Compare `getppid()` with the parent's pid. The request covers only the future: if the parent
   ended before step 2, no signal will ever come, but we already have another parent and exit.
4. Reset SIGINT and exec.

"Parent" means the *thread* that forked: `child` therefore starts children from the main thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
#: Exit statuses of this program itself. No program that it executes uses these.
NO_USER_NAMESPACE, PARENT_GONE, NO_PROGRAM = 115, 116, 117


def drop_root(libc: ctypes.CDLL) -> None:
    """Enter a user namespace in which our uid is 1000: PostgreSQL refuses to run as root.

    Outside of the namespace we stay the same user, so files keep their owner and no system user
    has to be created.
    """
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER) != 0:
        print(f"parent_death: unshare: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(NO_USER_NAMESPACE)
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"1000 {uid} 1"),
            ("gid_map", f"1000 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        print(f"parent_death: {error}", file=sys.stderr)
        sys.exit(NO_USER_NAMESPACE)


def main(argv: list[str]) -> None:
    """Carry out the steps above and execute the command. Never returns."""
    parent, death_signal, root, *command = argv
    libc = ctypes.CDLL(None, use_errno=True)
    if root == "drop":
        drop_root(libc)
    # After `drop_root`, whose change of credentials would clear it.
    libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):  # the parent ended before the line above
        sys.exit(PARENT_GONE)
    # A shell's `&` makes a process ignore SIGINT, and exec keeps that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"parent_death: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NO_PROGRAM)


if __name__ == "__main__":
    main(sys.argv[1:])
