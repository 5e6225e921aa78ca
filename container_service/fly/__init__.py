"""The HTTP client of Fly: only this folder knows Fly's JSON, status codes and error texts.

`client` and `volumes` implement the provider ports of `containers`, one HTTP request per method,
and `state_http` is the channel for state hooks over HTTP. `transport` sends every request to the
Machines API within Fly's rate limits (`rate_limiter`), retries it within a budget, and rejects it
unsent while the app's circuit is open (`app_health`).
"""
