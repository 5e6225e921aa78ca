"""The emulator's stand-in for fly-proxy: the way from a URL to a guest.

`routing` chooses the machine and starts it where it is stopped or suspended. `proxy` forwards the
request and streams both bodies. It listens on a port of its own.
"""
