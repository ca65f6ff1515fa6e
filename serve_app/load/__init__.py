"""How loaded the stages are, and who is let in."""
