"""Writes rows with their answers as files: text, workbooks, Parquet, filled sheets."""
