"""Sessions, checkpoints, policies and agent sessions as values, and the decisions about them.
All functions are pure and total: their input is rows, facts and the database's time.
The folder imports the standard library only.
"""
