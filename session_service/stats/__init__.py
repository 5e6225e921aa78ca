"""Statistics on the sessions of a time span, for GetSessionStats and the `stats` command.

`service` counts, with the queries in `storage.session`. `table` prints the result as text.
"""
