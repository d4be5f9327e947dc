"""The columns that a job adds to a row."""
