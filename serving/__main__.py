"""`python -m serving` is the command `serving`."""

from serving.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
