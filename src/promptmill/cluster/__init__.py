"""Replicas of a model behind one `answer`: engines on several GPUs, and backends in other processes."""
