"""The backends, one package each. They share only `protocol`."""
