"""The ownership of transitions, and the rows that transitions write.
A lease in the session's row names the replica that runs the transition; it is renewed until the
outcome is committed. The changes of rows and the decision that answers the call are built here.
"""
