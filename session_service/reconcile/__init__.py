"""The background passes of every replica: due actions, the provider's listing, and retention.
A pass is one call of a public function or method, and a loop in `server.background` repeats it.
Passes claim their work in the database, so that two replicas never do the same work.
"""
