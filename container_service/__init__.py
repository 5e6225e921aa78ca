"""container_service: the lifecycle of containers, as gRPC calls on top of the Fly Machines API.

It hides what is hard about the provider: answers that get lost, reads that lag behind writes, rate
limits, leases, and suspends that lose memory without an error. `containers` holds the use cases,
`rpc` and `fly` are the edges, and nothing is stored, because the provider is the source of truth.
"""
