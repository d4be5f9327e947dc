"""Detached runs of jobs, jobs of a server, calls that become jobs, export and removal."""
