"""Replicas of a model: Ray actors, behind one `answer`."""
