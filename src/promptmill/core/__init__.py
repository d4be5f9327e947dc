"""The types everything else is built from: conversations, sampling parameters, outcomes, errors."""
