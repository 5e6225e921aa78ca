"""Machines: their states, leases and volumes, and everything that can be done to them.

`lifecycle` has the half of each verb that a client waits for: check and commit, without an await.
`jobs` has the background half, `fleet` finds, creates and restores machines, `volume_claims` has
which machine has which volume, and `autostop` stops machines that get no traffic.
"""
