"""Pages of one HTML file, which makes no request: figures, and rows to browse and search."""
