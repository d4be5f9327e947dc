"""What an answer holds, and what it must be."""
