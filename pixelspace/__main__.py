"""`python -m pixelspace`."""

from pixelspace.cli import run

if __name__ == "__main__":
    run()
