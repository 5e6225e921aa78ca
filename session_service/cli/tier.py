"""`tier`: show or set a tenant's tier."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from session_service.cli import command
from session_service.domain.policy import TIERS
from session_service.domain.session import DEFAULT_TENANT
from session_service.server import composition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.config import Config

NAME = "tier"


def main(argv: Sequence[str]) -> int:
    """Status 0: the tier was shown or set. 2: an error."""
    parser = argparse.ArgumentParser(
        prog=f"python -m session_service {NAME}",
        description="Shows or sets a tenant's tier, which caps the policies of its projects. "
        "A tenant that was given none has the tier of ROOST_TIER. Live sessions follow at once: "
        "their timeouts change, and none of them ends because of it.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="get|set")
    for action, summary in (("get", "show a tenant's tier"), ("set", "set a tenant's tier")):
        each = actions.add_parser(action, help=summary, description=summary)
        each.add_argument(
            "tenant", help=f"{DEFAULT_TENANT!r}, unless authentication tells tenants apart"
        )
        if action == "set":
            each.add_argument("tier", choices=sorted(TIERS))
    arguments = parser.parse_args(argv)
    return command.run(NAME, lambda config: _run(config, arguments))


async def _run(config: Config, arguments: argparse.Namespace) -> int:
    tenant: str = arguments.tenant
    async with command.database_of(config) as database:
        policies = composition.policies_of(config, database)
        updated = ""
        if arguments.action == "set":
            count = await policies.set_tier(tenant, arguments.tier)
            updated = f", {count} live session{'' if count == 1 else 's'} updated"
        # The empty project stands for what all of the tenant's projects have in common.
        tier = (await policies.project(tenant, "")).tier
        sys.stdout.write(f"{tenant}: {tier}{updated}\n")
    return 0
