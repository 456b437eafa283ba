"""`python -m maskgrpo_cli`: the command `maskgrpo`."""

import sys

from maskgrpo_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
