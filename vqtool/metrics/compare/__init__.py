"""Samplers compared on one prior: which trials, what each scores, and the file that keeps the results."""
