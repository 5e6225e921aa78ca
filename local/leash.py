"""Become another program, one that cannot outlive its parent.

Run by its path, on the standard library alone:

    python -I -S leash.py PARENT_PID DEATH_SIGNAL keep|drop COMMAND...

A program of its own, and not a `preexec_fn`: the parent has threads (gRPC's among them), and Python
code between fork and exec of a threaded process can hang for ever.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
#: Exit statuses of the leash itself; the programs run under it use none of these.
NO_USER_NAMESPACE, PARENT_GONE, NO_PROGRAM = 115, 116, 117


def drop_root(libc: ctypes.CDLL) -> None:
    """Enter a user namespace in which we are uid 1000, the only one: PostgreSQL refuses to be root.

    Outside of it we stay the same user, so files keep their owner and no system user is made.
    """
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER) != 0:
        print(f"leash: unshare: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
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
        print(f"leash: {error}", file=sys.stderr)
        sys.exit(NO_USER_NAMESPACE)


def main(argv: list[str]) -> None:
    """Put on the leash and run the command. Returns never."""
    parent, death_signal, root, *command = argv
    libc = ctypes.CDLL(None, use_errno=True)
    if root == "drop":
        drop_root(libc)
    # After unshare: a change of credentials clears it. It fires when the *thread* that forked ends.
    libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the line above
        sys.exit(PARENT_GONE)
    # A shell's `&` leaves SIGINT ignored, and exec would hand that on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"leash: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NO_PROGRAM)


if __name__ == "__main__":
    main(sys.argv[1:])
