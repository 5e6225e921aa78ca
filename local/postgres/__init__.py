"""An embedded PostgreSQL, for users and tests that have no server.

`server` runs it as a child process that cannot outlive its parent, `folder` owns its files and its
lock, and `command` is `python -m local postgres`. The binaries come from a wheel.
"""
