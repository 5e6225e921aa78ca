"""Every check of Roost that needs it to run."""
