"""What differs between operating systems, and what every process of ours needs."""
