"""Rows with answers as files: text, workbooks, Parquet, filled sheets."""
