"""One run of a job: from the admitted input through its answers to the output."""
