"""Codebooks: what the codes are worth, and how to rebuild them.

Seeding is one file a method with `def seeds(vectors (N, D), size, generator) -> (size, D)`; their names are in
`seeding.SEEDINGS`.
"""
