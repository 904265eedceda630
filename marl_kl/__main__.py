"""`python -m marl_kl`: the command line."""

import sys

from marl_kl.cli.main import main

sys.exit(main())
