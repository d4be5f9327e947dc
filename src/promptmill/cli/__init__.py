"""The command line: `promptmill …`."""
