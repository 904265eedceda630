"""Comparison of stored runs: `samples` are read, `estimates` computed, `output` written; `compare_runs` does all three."""
