"""`python -m promptmill`: the command line."""

import sys

from promptmill.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
