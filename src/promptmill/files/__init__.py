"""Files as rows: the formats of files, and their readers. No module here knows a job.

path ─▶ `path_formats` ─▶ `files` (its bytes) ─▶ a reader: cells, json_lines, parquet, … ─▶ `row` (InputRow)
"""
