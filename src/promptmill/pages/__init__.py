"""Pages that are single HTML files and make no requests: figures, and rows that can be browsed and searched."""
