"""`python -m clearhead.cli` is `clearhead`."""

import sys

from clearhead.cli import main

sys.exit(main())
