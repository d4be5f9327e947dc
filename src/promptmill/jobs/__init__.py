"""File → file jobs that survive a power loss. A job is one folder on disk; `folder` lists its files."""
