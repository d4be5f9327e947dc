"""Rows of files."""

from bench import ingested

__all__ = ["ingested"]
