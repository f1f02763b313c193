"""The version of vqtool, importable without anything else."""

__version__ = "0.2.0.dev0"
TOKENS: int = 1  # higher in a version that makes other tokens of the same input and settings: `resume` mixes no two
