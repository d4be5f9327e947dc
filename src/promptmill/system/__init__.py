"""Differences between operating systems, and the set-up of our processes."""
