"""`python -m drunet_cli` is `drunet`. Imports nothing of weight at first, so that Ctrl-C is silent from the beginning."""

import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """The script `drunet`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` can report it
    from drunet_cli.cli.app import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
