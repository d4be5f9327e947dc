"""Every bound of promptmill, once, with its reason.

A bound names the attacker or the accident that it is for. The three parts are the three sources of untrusted data.
"""

from __future__ import annotations

# ---- a row of a file

LONGEST_ROW = 64 << 20
"""Bytes of a line, of a cell, and of a prompt made of cells. An image of 30 million pixels in base64 is below it, and
sixteen such rows in flight fit the memory of a small machine."""
TOO_LONG = "is longer than 64 MiB"
