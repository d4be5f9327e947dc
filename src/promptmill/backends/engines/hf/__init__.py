"""The transformers engine: text generation with a decode loop of our own, so that rows join and leave at any token."""
