"""`python -m verify LAKE`, wherever this folder lies."""

import sys

from . import main

sys.exit(main())
