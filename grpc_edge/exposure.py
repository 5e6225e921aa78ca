"""Whether an address can be reached from other machines, and whether a service may serve there.

Beyond loopback a service serves only peers that TLS has identified, unless its operator says that
the network keeps strangers out. So nobody serves the world by leaving a setting out.
"""

from __future__ import annotations

import ipaddress
import logging

_log = logging.getLogger(__name__)

#: The variable that allows plain text beyond loopback.
INSECURE = "ROOST_INSECURE"


class Exposed(Exception):
    """A service must not be served as it is configured; the message is one line that says why."""


def admit(exposed: str, *, insecure: bool) -> None:
    """Let a start go on, or raise Exposed. `exposed` says why it must not, without the word.

    The log says at each start that the word lets it go on, and that it has no use.
    """
    if exposed and not insecure:
        raise Exposed(exposed)
    if exposed:
        _log.warning(
            f"{INSECURE} lets strangers in. Without it this service would not start: %s",
            exposed,
            extra={"action": "configure"},
        )
    elif insecure:
        _log.warning(
            f"{INSECURE} has no use here: take it out, so that a variable that gets lost ends the"
            " start",
            extra={"action": "configure"},
        )


def is_loopback(address: str) -> bool:
    """Whether `host:port` can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]").lower()
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refused_server(variable: str, listen: str, *, certificate: str, authorities: str) -> str:
    """Why a service must not serve at an address: one line, or an empty text if it may."""
    if is_loopback(listen) or (certificate and authorities):
        return ""
    lacking = "ROOST_TLS_CLIENT_CA" if certificate else _ALL
    return (
        f"{variable}: {listen} can be reached from other machines, and nothing would say who calls:"
        f" set {lacking}, or {INSECURE}=true where the network keeps strangers out"
        " (docs/security.md)"
    )


_ALL = "ROOST_TLS_CERT, ROOST_TLS_KEY and ROOST_TLS_CLIENT_CA"


def refused_target(variable: str, target: str, *, authorities: str) -> str:
    """Why a service must not call an address in plain text: one line, or empty if it may."""
    if is_loopback(target) or authorities:
        return ""
    return (
        f"{variable}: {target} is on another machine, and calls would go there in plain text: set "
        f"ROOST_CONTAINER_TLS_CA, or {INSECURE}=true where the network keeps strangers out "
        "(docs/security.md)"
    )
