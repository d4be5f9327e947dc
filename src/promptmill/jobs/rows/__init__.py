"""A row becomes a request: everything between the cells of an input and `core.request.Request`.

cells ─▶ Questions, by a template or columns ─▶ the question, as JSON ─▶ RowReader ─▶ Request
"""
