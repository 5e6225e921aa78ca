"""The local stack: Roost without Docker, a Fly account or a database server.

`stack` runs everything as child processes, `demo` shows it at work, `fly` is the emulator of Fly's
Machines API and `postgres` the embedded database. Tests use the same parts; neither service imports
them.
"""
