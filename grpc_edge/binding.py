"""The address of a server: in plain text, or with TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc
    import grpc.aio


class PortTaken(Exception):
    """An address is taken, or this process may not listen on it. `variable` is what set it."""

    def __init__(self, listen: str, variable: str) -> None:
        super().__init__(listen)
        self.variable = variable


def bind(
    server: grpc.aio.Server,
    listen: str,
    credentials: grpc.ServerCredentials | None = None,
    *,
    variable: str,
) -> int:
    """Bind the address, for plain text without credentials; return the port.

    Raises PortTaken with the variable.
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise PortTaken(listen, variable) from error
    if not port:
        raise PortTaken(listen, variable)
    return port
