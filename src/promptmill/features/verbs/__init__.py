"""Verbs. A verb is work that has a command, a Python function and a tool, all made from one record: `verb.Verb`."""

from promptmill.core.feature import Feature

FEATURE = Feature(words="commands that are also Python functions and tools, each made from one record")
