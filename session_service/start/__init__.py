"""StartSession, ResumeSession, RestoreCheckpoint and ForkSession.
A start reads the facts, gets a plan from the ladder, and translates the plan into a wait or a
commit. It does not call the provider itself; bring_up does the work.
"""
