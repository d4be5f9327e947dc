"""Answers: the reasoning in them, and the JSON Schema that they must satisfy."""
