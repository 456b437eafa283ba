"""`python -m maskgrpo_plugin`: the command `maskgrpo`."""

import sys

from maskgrpo_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
