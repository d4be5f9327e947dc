"""Files as rows: what a format of files is, and the readers of each. No module here knows a job.

path ─▶ `formats` (by its suffix) ─▶ `files` (its bytes) ─▶ a reader: cells, json_lines, parquet, … ─▶ `row` (InputRow)
"""
