"""What the provider itself, not Roost, says of a machine."""

from __future__ import annotations

import httpx


async def machine_state(api_url: str, token: str, app: str, machine_id: str) -> str:
    """Its state, as in "started" or "destroyed"; where there is none, the status of the answer."""
    headers = {"authorization": f"Bearer {token}"}
    # Nothing from the environment: a developer's HTTP_PROXY is not for loopback.
    async with httpx.AsyncClient(base_url=api_url, headers=headers, trust_env=False) as client:
        try:
            answer = await client.get(f"/v1/apps/{app}/machines/{machine_id}")
        except httpx.HTTPError as error:
            return repr(error)
    return str(answer.json()["state"]) if answer.is_success else f"HTTP {answer.status_code}"
