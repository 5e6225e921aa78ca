"""The Fly emulator: Fly's Machines HTTP API over real child processes.

The services do not import this package and it imports nothing of theirs: they meet on the wire.
`emulator.serve` runs it in the caller's event loop, `emulator_process.running` in a process of its
own, and `admin.Admin` is the client that reads its logs and sets faults.
"""
