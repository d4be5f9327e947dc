"""The options of a job: one table, from which each face generates its own form of the options.

table ─▶ flags of the command `bulk`, arguments of the tool `bulk_generate`, keywords of `promptmill.bulk`,
         the rows of docs/names.md, and the check of combinations
"""
