"""Make the Fly app that the containers live in; as a program: `python -m local.fly_app`."""

from __future__ import annotations

import os
import sys

import httpx

#: What an emulator needs no account for.
ORGANISATION = "personal"


class AppRefused(Exception):
    """The app could not be made; the message is one line."""


async def ensure_app(api_url: str, token: str, app: str) -> None:
    """Make the app unless it is there."""
    headers = {"authorization": f"Bearer {token}"}
    # Nothing from the environment: a developer's HTTP_PROXY is not for loopback.
    async with httpx.AsyncClient(base_url=api_url, headers=headers, trust_env=False) as client:
        if (await client.get(f"/v1/apps/{app}")).status_code == httpx.codes.OK:
            return
        answer = await client.post("/v1/apps", json={"app_name": app, "org_slug": ORGANISATION})
        if answer.status_code != httpx.codes.CREATED:
            raise AppRefused(f"app {app}: {answer.status_code} {answer.text}")


def main() -> int:
    """Make ROOST_FLY_APP at FLY_FLAPS_BASE_URL."""
    import asyncio

    environment = os.environ
    names = ("FLY_FLAPS_BASE_URL", "FLY_API_TOKEN", "ROOST_FLY_APP")
    if missing := [name for name in names if not environment.get(name)]:
        print(f"not set: {', '.join(missing)}", file=sys.stderr)
        return 2
    try:
        asyncio.run(ensure_app(*(environment[name] for name in names)))
    except (AppRefused, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
