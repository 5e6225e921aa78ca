"""The HTTP API of the emulator: routing, authentication, rate limits, and one module per area.

`application` assembles the ASGI application, `endpoint` runs every request through the same steps,
and each area's module ends with its list of operations. The handlers read the request, call the
machines or volumes, and render the result; they decide nothing else.
"""
