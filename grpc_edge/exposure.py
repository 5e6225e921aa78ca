"""Whether an address can be reached from other machines, and whether a service may serve there.

Beyond loopback a service serves only peers that TLS has identified, unless its operator says that
the network keeps strangers out. So nobody serves the world by leaving a setting out.
"""

from __future__ import annotations

import ipaddress

#: The variable that allows plain text beyond loopback.
INSECURE = "ROOST_INSECURE"
#: What the log says at each start that INSECURE allows.
WARNING = f"{INSECURE} lets strangers in. Without it this service would not start: %s"
#: What it says if there is nothing to allow.
NEEDLESS = (
    f"{INSECURE} has no use here: take it out, so that a variable that gets lost ends the start"
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
