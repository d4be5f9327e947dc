"""Features. Each folder extends promptmill through the sockets of `promptmill.core.feature`, and can be deleted."""
