"""The backends, one package each; they share only `protocol`."""
