"""The gRPC services: each method parses its request, calls a use case and renders the reply.
Errors become statuses in one place, `interceptors`.
"""
