"""What a guest runs first: tie its life to the emulator's, then become the command.

Run as a script, not imported. A script and not a function between fork and exec, because Python
code there is unsafe in a process with threads.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_INHERITED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def main(parent: int, told: int, argv: list[str]) -> None:
    """Die with the parent from here on, and exec `argv`.

    Not before a byte came on the descriptor `told`: what the command starts is ended by the
    undertaker, which must have heard of it first, however slow the parent is. -1: nobody is told.
    """
    # A stop that comes now waits for the command: exec would drop one that Python has only noted.
    signal.pthread_sigmask(signal.SIG_BLOCK, _INHERITED)
    _die_with(parent)
    if told >= 0:
        if not os.read(told, 1):
            os._exit(137)
        os.close(told)
    # A shell's background job ignores SIGINT, and that would be inherited: a stop would time out.
    for name in _INHERITED:
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _die_with(parent: int) -> None:
    # Imported late: it takes half of this script's time, in which a signal must not be lost.
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the line above: then no signal will ever come.
    if os.getppid() != parent:
        os._exit(137)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
