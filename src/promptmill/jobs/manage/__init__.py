"""The jobs of a server and of Python programs, calls that become jobs, series of jobs, and the removal of jobs."""
