"""The command line of session_service: `serve`, `migrate`, and the operator's commands.

`commands` has the table of subcommands, and loads the module of the one that is run. Each module
parses its own arguments and ends with one line and an exit status where something is wrong.
"""
