"""Answers: their reasoning, and the JSON Schema they must match."""
