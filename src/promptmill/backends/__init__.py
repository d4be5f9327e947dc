"""The engines that answer: one package each, nothing shared but `protocol`."""
