"""Better prompts, found on rows with right answers and tested once on others."""
