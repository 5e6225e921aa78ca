"""The table of subcommands, and the choice of one of them."""

from __future__ import annotations

import argparse
import gc
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand."""

    function: str
    """`module:function`. The function takes the arguments that follow the subcommand's name, and
    returns the exit status."""
    summary: str

    def load(self) -> Callable[[Sequence[str]], int]:
        """Import the module, and return the function.

        Modules and what they define stay as long as the process runs. The collector of cyclic
        garbage would look at all of it several times during the imports, which takes a sixth of
        their CPU, and later again and again, 90,000 objects at a time, which stops the event loop.
        So it is off during the imports, and from then on leaves out what they have made.
        """
        module, _, name = self.function.partition(":")
        gc.disable()
        try:
            function: Callable[[Sequence[str]], int] = getattr(import_module(module), name)
        finally:
            gc.freeze()
            gc.enable()
        return function


#: Modules are named and not imported: the service does not load what only an operator's command
#: needs, and a command does not load the service.
COMMANDS = {
    "serve": Command("session_service.cli.serve:main", "serve the gRPC services; the default"),
    "migrate": Command("session_service.cli.serve:migrate", "bring the database up to date"),
    "agent": Command("session_service.cli.agent:main", "import or export agent sessions"),
    "import-preview-sessions": Command(
        "session_service.adoption.command:main", "import an older platform's session table"
    ),
    "sweep": Command(
        "session_service.cli.sweep:main", "compare the provider's containers with the rows, once"
    ),
    "stats": Command("session_service.cli.stats:main", "show statistics of a time span"),
    "claim-installation": Command(
        "session_service.cli.claim_installation:main", "bind a database that was moved"
    ),
    "tier": Command("session_service.cli.tier:main", "show or set a tenant's tier"),
}
DEFAULT = "serve"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that `argv` names, or `serve`. Returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] not in COMMANDS:
        # Prints the help, or one line that says what is wrong, and exits.
        _parser().parse_args(arguments)
    name, rest = (arguments[0], arguments[1:]) if arguments else (DEFAULT, [])
    try:
        return COMMANDS[name].load()(rest)
    except KeyboardInterrupt:
        # Also while the modules load, which takes a second.
        return 130


def _parser() -> argparse.ArgumentParser:
    from session_service.config import describe

    width = max(map(len, COMMANDS)) + 2
    listed = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m session_service",
        description="Serves roost.session.v1.SessionService; PostgreSQL holds its state.",
        epilog="\n".join(["commands, each with a --help of its own:", *listed, "", describe()]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="command")
    return parser
