"""Calls that change no container: lookups, TouchSession, WatchSession, PutHold and ReleaseHold.

They read rows. The only things that they write are holds and the time of the user's last activity.
None of them calls the provider.
"""
