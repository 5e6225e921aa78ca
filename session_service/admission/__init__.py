"""How much work a replica does at once: slots, and a fair queue for the work that waits for one.
The queue has lanes by tenant, project and user, so that one user's work does not delay the others.
No lane may take all slots, so that one user's calls that hang do not block the replica.
"""
