"""The loaded backends, and the calls that run on them."""
