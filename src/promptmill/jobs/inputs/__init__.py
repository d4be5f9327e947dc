"""The rows of a job's input: the questions about them, whole files as rows, remote files, and secrets in rows."""
