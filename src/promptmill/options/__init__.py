"""The options of a job: one table, from which every face makes what it shows.

table ─▶ flags of the command `bulk`, arguments of the tool `bulk_generate`, keywords of `promptmill.bulk`,
         the rows of docs/names.md, and the check of combinations
"""
