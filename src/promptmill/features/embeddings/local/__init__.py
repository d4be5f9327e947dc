"""Text encoders that run on this machine: `backend: encoder`, with the model `e5` or `use`."""
