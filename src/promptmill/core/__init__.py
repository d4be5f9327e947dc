"""The types from which everything else is built: conversations, sampling parameters, outcomes, errors."""
