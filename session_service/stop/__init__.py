"""PauseSession, StopSession, EndSession and UndeleteSession.
Each call has a rule: a pure function from the facts to a commit. bring_down brings the container
down after the commit.
"""
