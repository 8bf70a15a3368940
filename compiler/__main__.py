"""`python -m compiler` is `taskgraft`."""

from compiler.cli import run

if __name__ == "__main__":
    run()
