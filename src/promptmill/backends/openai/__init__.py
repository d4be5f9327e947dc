"""The backend for OpenAI-compatible endpoints, over one pool of connections."""
