"""Costmodel from a checkout: `python cli.py predict --arch … --hw …`."""

import sys

if __name__ == "__main__":
    try:
        from costmodel.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)
