"""The settings of a gRPC server of Roost."""

from __future__ import annotations

#: gRPC's default limit of a message, and the contract's.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

#: The shortest interval at which a client may send HTTP/2 pings, in ms. gRPC's default of 5 min
#: closes the connection of a client that pings each 10 s ("Too many pings"), and behind a proxy
#: that drops quiet connections after 60 s a client has to.
SHORTEST_PING_MS = 5_000
#: The interval of the server's own pings on a quiet connection, in ms: below the 50 to 60 s after
#: which nginx and HAProxy close one by default.
PING_MS = 30_000
#: How long the server waits for the answer to its ping before it closes the connection, in ms.
PING_ANSWER_MS = 10_000

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # With SO_REUSEPORT, gRPC's default, two servers on one port would silently share its
    # connections: a taken port must be an error.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # `grpc.http2.min_recv_ping_interval_without_data_ms`, which the documentation names, has no
    # effect in grpcio 1.85.1.
    ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", PING_ANSWER_MS),
    # Else the server stops to ping after two pings without data in between.
    ("grpc.http2.max_pings_without_data", 0),
)


def server_options(connection_age: float) -> tuple[tuple[str, int], ...]:
    """The options of a server whose connections take no new calls after `connection_age` seconds,
    more or less a tenth; 0: no limit.

    Their clients make new connections, and so find new replicas. Calls under way are not cut:
    `grpc.max_connection_age_grace_ms` has no limit by default.
    """
    if not connection_age:
        return SERVER_OPTIONS
    milliseconds = max(1, round(connection_age * 1000))
    return (*SERVER_OPTIONS, ("grpc.max_connection_age_ms", milliseconds))
