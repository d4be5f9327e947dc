"""Engines that compute on this machine, each in a child process."""
