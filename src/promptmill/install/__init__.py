"""Putting promptmill where a client looks for it, and taking it away again."""
