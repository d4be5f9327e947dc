"""Files of rows, their formats and tables, and files that are written as a whole."""
