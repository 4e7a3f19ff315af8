"""`python -m clearhead` is `clearhead`, and what torchrun starts."""

import sys

from clearhead.cli import main

sys.exit(main())
