"""`python -m slurm COMMAND ...`: see `python -m slurm --help`."""

import sys
from functools import partial

from pipeline.runtime import cli

main = partial(cli.main, "slurm")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
