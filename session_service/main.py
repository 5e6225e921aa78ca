"""The entry point of the commands `roost` and `roost-session-service`: see `cli`."""

from session_service.cli.commands import main

__all__ = ["main"]
