"""What sessions are and what is decided about them: pure, standard library only."""
