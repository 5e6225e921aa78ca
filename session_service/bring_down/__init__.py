"""Bringing a session's container down: the worker of a pause, a stop, an end and a purge.
It works under a lease on the machine, and saves the state first if the policy asks for that. Its
outcome is a commit of the state that it observed.
"""
