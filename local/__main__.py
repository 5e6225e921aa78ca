"""`python -m local {up,demo,fly,postgres}`: run one subcommand."""

from __future__ import annotations

import argparse
import importlib
import sys

#: Subcommand → the module that runs it, and its line in the help. Each module has `main(argv)`,
#: which parses its own arguments and returns the exit status. Only the module that is needed is
#: imported: the others cost up to a second.
COMMANDS = {
    "up": ("local.stack.up", "run the whole stack in the foreground until Ctrl-C"),
    "demo": (
        "local.demo.command",
        "show the main scenario: after a stop and a start the counter is still 2",
    ),
    "fly": ("local.fly.command", "run only the Fly emulator"),
    "postgres": ("local.postgres.command", "run only the embedded PostgreSQL"),
}


def main(argv: list[str]) -> int:
    """Run one subcommand and return its exit status; without one, print the list and return 2."""
    if argv and argv[0] in COMMANDS:
        module, _ = COMMANDS[argv[0]]
        status: int = importlib.import_module(module).main(argv[1:])
        return status
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    parser.parse_args(argv)
    return 2


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        # Ctrl-C while the subcommand's modules are still being imported, before it handles signals.
        status = 130
    sys.exit(status)
