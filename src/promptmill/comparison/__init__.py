"""Answers of several files or models to the same rows, compared: figures, words, a page, and a judge."""
