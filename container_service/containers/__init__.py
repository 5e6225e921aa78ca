"""The use cases on containers and volumes, and the port to the provider that runs them.

Each module carries out one kind of change (create, start, stop, lease, state transfer) so that a
lost answer, a stale read or a short outage of the provider never gives a wrong result. The code
knows `provider.Provider` only: neither gRPC nor HTTP nor Fly.
"""
