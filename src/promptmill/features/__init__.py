"""Features: each folder plugs into the sockets of `promptmill.core.feature`, and can be deleted."""
