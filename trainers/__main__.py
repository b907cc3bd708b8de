"""`python -m trainers`."""
# edge: nothing but the call

import sys

from trainers.cli import main

if __name__ == "__main__":
    sys.exit(main())
