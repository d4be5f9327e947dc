"""Any OpenAI-compatible endpoint, over one pool of connections."""
