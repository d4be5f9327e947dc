"""Reports: pages of one HTML file."""
