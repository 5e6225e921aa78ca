"""`python -m local {up,demo,fly,postgres}`: hand over to the subcommand's own module."""

from __future__ import annotations

import argparse
import importlib
import sys

#: Subcommand → the module that runs it, and its line in the help. The module has `main(argv)`,
#: which parses its own arguments and returns the exit status; it is imported when it is asked for.
COMMANDS = {
    "up": ("local.up", "run the whole stack in the foreground; Ctrl-C ends it"),
    "demo": ("local.demo", "show the main job: stop, start again, and the counter is still 2"),
    "fly": ("local.fly.command", "run the Fly emulator alone"),
    "postgres": ("local.postgres_command", "run the embedded PostgreSQL alone"),
}


def main(argv: list[str]) -> int:
    """Run one subcommand and return its exit status; without one, print the list."""
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
        # While a subcommand's modules are still being imported, before it can stop by itself.
        status = 130
    sys.exit(status)
