"""`python -m harmony`; everything is in `harmony.gateway.command_line`."""

import sys

from harmony.gateway.command_line import main

if __name__ == "__main__":
    sys.exit(main())
