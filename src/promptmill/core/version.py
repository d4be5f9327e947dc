"""The version of promptmill."""

from __future__ import annotations

__version__ = "0.1.0"
