"""A path or URL to checked image bytes."""
