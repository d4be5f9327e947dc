"""Standard input and output: the first answers to a client, given while the server is still being imported."""
