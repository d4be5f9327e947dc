"""Converts a path or URL to the bytes of a checked image."""
