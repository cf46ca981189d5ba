"""`python -m pipeline COMMAND ...`: see `python -m pipeline --help`."""

import sys
from functools import partial

from pipeline.runtime import cli

main = partial(cli.main, "pipeline")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
