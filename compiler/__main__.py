"""`python -m compiler` is `taskgraft`."""

from compiler.start import run

if __name__ == "__main__":
    run()
