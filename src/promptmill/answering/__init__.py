"""Functions around `answer`, which add a feature to every backend: several answers, cache, schema, budget, …"""
