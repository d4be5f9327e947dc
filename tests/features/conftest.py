"""The bench of file jobs."""

from bench import bench, ingested, store, tools

__all__ = ["bench", "ingested", "store", "tools"]
