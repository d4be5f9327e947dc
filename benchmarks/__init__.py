"""What promptmill costs, as ratios to the barest program that does the same: `python -m benchmarks`."""
