"""`python -m data_prep COMMAND ...`: see `python -m data_prep --help`."""

import sys
from functools import partial

from pipeline.runtime import cli

main = partial(cli.main, "data_prep")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
