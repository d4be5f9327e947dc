"""Functions around `answer` that add features to every backend: several answers, cache, schema, budget, …"""
