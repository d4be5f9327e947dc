"""Detached runs, the jobs of a server, calls that become jobs, export and removal."""
