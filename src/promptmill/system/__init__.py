"""Differences between operating systems, and the set-up of promptmill's processes."""
