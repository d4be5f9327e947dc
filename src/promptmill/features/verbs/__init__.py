"""Verbs: work for which a command, a Python function and a tool are made from one record, see `verb.Verb`."""

from promptmill.core.feature import Feature

FEATURE = Feature(words="commands that are also Python functions and tools, each made from one record")
