"""The Fly emulator: Fly's Machines HTTP API spoken over real child processes.

Nothing here is imported by the services, and nothing of theirs is imported here: the two meet on
the wire. `emulator.serve` runs it in the caller's event loop, `child.run` as a process of its own,
`admin.Admin` reads its logs and sets faults.
"""
