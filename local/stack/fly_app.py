"""Create the Fly app of the containers. As a program: `python -m local.stack.fly_app`."""

from __future__ import annotations

import os
import sys

import httpx

#: The organisation of the app; the emulator accepts any.
ORGANISATION = "personal"


class AppNotCreated(Exception):
    """The app could not be created; the message is one line."""


async def ensure_app(api_url: str, token: str, app: str) -> None:
    """Create the app unless it exists. Raises AppNotCreated or httpx.HTTPError."""
    headers = {"authorization": f"Bearer {token}"}
    # `trust_env=False`: a developer's HTTP_PROXY must not apply to loopback.
    async with httpx.AsyncClient(base_url=api_url, headers=headers, trust_env=False) as client:
        if (await client.get(f"/v1/apps/{app}")).status_code == httpx.codes.OK:
            return
        answer = await client.post("/v1/apps", json={"app_name": app, "org_slug": ORGANISATION})
        if answer.status_code != httpx.codes.CREATED:
            raise AppNotCreated(f"app {app}: {answer.status_code} {answer.text}")


def main() -> int:
    """Create ROOST_FLY_APP at FLY_FLAPS_BASE_URL. Status 2: a variable is missing; 1: an error."""
    import asyncio

    environment = os.environ
    names = ("FLY_FLAPS_BASE_URL", "FLY_API_TOKEN", "ROOST_FLY_APP")
    if missing := [name for name in names if not environment.get(name)]:
        print(f"not set: {', '.join(missing)}", file=sys.stderr)
        return 2
    try:
        asyncio.run(ensure_app(*(environment[name] for name in names)))
    except (AppNotCreated, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
