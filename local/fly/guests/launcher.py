"""The program between fork and exec of an emulator: it makes the kernel kill the emulator when the
process ends that started it, and then executes the emulator's command.

Run as a script: `launcher.py PARENT_PID COMMAND...`. It is a program of its own and not a
`preexec_fn`, because Python code between fork and exec can deadlock in a process with threads.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_INHERITED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def main(parent: int, argv: list[str]) -> None:
    """Die with the process `parent` from here on, and exec `argv`."""
    # A signal that arrives from now on stays pending for the command. Without the block Python's
    # own handler would note it and exec would drop the note.
    signal.pthread_sigmask(signal.SIG_BLOCK, _INHERITED)
    _die_with(parent)
    # A shell's background job ignores SIGINT, and a child inherits that: a stop would time out.
    for name in _INHERITED:
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _die_with(parent: int) -> None:
    # Imported here, with signals blocked: it takes half of this script's time.
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # PR_SET_PDEATHSIG takes effect from the call on. If the parent ended before it, no signal will
    # ever come, but then we already have another parent.
    if os.getppid() != parent:
        os._exit(137)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
