"""`python -m local fly`: run the emulator in the foreground."""

import argparse
import asyncio
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from local.fly.settings import TEXT_FIELDS, SettingError, Settings

_OWN_OPTIONS = {
    "host": "address to listen on (127.0.0.1)",
    "port": "port of the Machines API; 0 chooses a free one (4280)",
    "proxy_port": "port of the proxy; 0 chooses a free one (4281)",
    "token": "the only API token to accept (any)",
    "scenario": "JSON file of faults to set at start-up (none)",
    "region": "region of machines that request none (iad)",
}


def main(argv: Sequence[str]) -> int:
    """Run until SIGINT or SIGTERM. Status 2, and one line on stderr, when a setting is invalid."""
    try:
        settings = parse(argv)
        asyncio.run(_run(settings))
    except SettingError as error:
        print(f"local fly: {error}", file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str]) -> Settings:
    """Read the settings from a command line. Raises SettingError."""
    given = _parser().parse_args(argv)
    texts = {name: value for name in _OWN_OPTIONS if (value := getattr(given, name)) is not None}
    texts |= dict(_pair(pair, "--set") for pair in given.set)
    images = {name: tuple(shlex.split(command)) for name, command in map(_image, given.image)}
    settings = Settings(data=given.data)
    settings = settings.at_fly_pace() if given.pace == "fly" else settings
    settings = replace(settings, limits=not given.no_limits, images=images)
    return settings.with_texts(texts)


def arguments(settings: Settings) -> list[str]:
    """The command line from which `parse` reads these settings.

    It contains the token, which other users of the machine can see in the process list.
    """
    pairs = [f"--set={name}={getattr(settings, name)}" for name in TEXT_FIELDS]
    images = [f"--image={name}={shlex.join(argv)}" for name, argv in settings.images.items()]
    return [f"--data={settings.data}", *pairs, *images]


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"local fly: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="python -m local fly",
        description="Fly's Machines API over real processes. Prints one line of JSON when ready, "
        "with the URLs of the API and of the proxy, and writes the same line to DIR/ready.json.",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder for all data"
    )
    for name, summary in _OWN_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, help=summary)
    parser.add_argument("--no-limits", action="store_true", help="switch off Fly's rate limits")
    parser.add_argument(
        "--pace",
        choices=("fast", "fly"),
        default="fast",
        help="how long transitions take: `fly` is about as slow as Fly",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="run COMMAND for machines of image NAME; may be repeated",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"set any setting; may be repeated: {', '.join(TEXT_FIELDS)}",
    )
    return parser


def _image(pair: str) -> tuple[str, str]:
    return _pair(pair, "--image")


def _pair(pair: str, option: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise SettingError(option, f"must be NAME=VALUE, not {pair!r}")
    return name, value


async def _run(settings: Settings) -> None:
    # Imported here, because `--help` and an invalid setting need no web server.
    from local.fly.emulator import announcement, serve
    from local.processes.stop_signals import stop_requested

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    async with stop_requested() as stopped, serve(settings) as emulator:
        print(announcement(emulator), flush=True)
        await stopped.wait()
