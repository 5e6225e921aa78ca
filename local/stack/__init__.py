"""The whole of Roost as child processes: PostgreSQL, the Fly emulator and both services.

`stack` starts, watches and stops them, `programs` has their commands and environments, and
`stack_settings` their folder and ports. `up` is `python -m local up`.
"""
