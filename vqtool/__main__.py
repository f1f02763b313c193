"""`python -m vqtool`, and what `accelerate launch -m vqtool` runs."""

from vqtool.cli.main import main

if __name__ == "__main__":
    main()
