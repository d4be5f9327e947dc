"""A job's folder: its specification, its answers and its lock."""
