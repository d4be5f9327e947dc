"""Makes requests from rows: everything between the cells of an input and `core.request.Request`.

cells ─▶ Questions, by a template or columns ─▶ the question, as JSON ─▶ RowReader ─▶ Request
"""
