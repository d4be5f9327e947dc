"""Engines that compute here, each in a process of its own."""
