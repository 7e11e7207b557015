"""`python -m retain` is `retain`."""

from retain.cli import main

if __name__ == "__main__":
    main()
