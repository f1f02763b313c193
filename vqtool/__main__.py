"""`python -m vqtool`, and what `accelerate launch -m vqtool` runs."""

import signal
import sys


def main() -> None:
    """Run the command; Ctrl-C while it is still being loaded ends it quietly, too."""
    try:
        from vqtool.cli.main import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    try:
        run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done: a late Ctrl-C has nothing to stop


if __name__ == "__main__":
    main()
