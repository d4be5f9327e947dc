"""Queries of DuckDB over files, URLs and databases as rows of a job."""

from promptmill.core.feature import Feature

FEATURE = Feature(words="queries of DuckDB over files, URLs and databases as rows")
