"""Codebooks: what the codes are worth, and how to rebuild them.

`usage` counts what grids use; `vectors` samples what an encoder makes of images, `seeding` and `refit` fit codes to it;
`rebuilt` puts codes into a tokenizer, `maps` brings grids along. Seeding is one function a method, with
`def seeds(vectors (N, D), size, generator) -> (size, D)`; their names are in `seeding.SEEDINGS`.
"""
