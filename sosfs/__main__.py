"""Run the program: `python -m sosfs`."""

import sys

from sosfs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
