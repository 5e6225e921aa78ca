"""Guests: the processes that stand for the inside of a running machine.

A guest is one boot of one machine: a real process group with its own root folder, environment and
boot id. `guest_processes` starts it through `process_server`, which also makes sure that it never
outlives the emulator, and `guest` suspends it by SIGSTOP.
"""
