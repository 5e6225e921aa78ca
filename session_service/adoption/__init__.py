"""The importer of an older platform's session table: its rows become sessions of Roost.

`command` is the subcommand, `importer` the order of work. Nothing outside this folder imports it.
"""
