"""`python -m compiler` is `taskgraft`."""

import sys

from compiler.cli import main

if __name__ == "__main__":
    sys.exit(main())
