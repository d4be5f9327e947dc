"""Rows of an input as a job needs them: its questions, whole files, remote files, and secrets in rows."""
