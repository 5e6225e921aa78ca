"""The gRPC edge: ContainerService, its interceptors, and the health service.

`servicer` answers each RPC in three steps: parse the message (`parse`, which names every invalid
field at once), call a use case of `containers`, render the result (`render`). `interceptors` run
around every RPC, log it, and turn errors into statuses by the table in `status`.
"""
