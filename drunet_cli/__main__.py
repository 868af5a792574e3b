"""`python -m drunet_cli` is `drunet`. Imports nothing of weight at first, so that Ctrl-C is silent from the beginning."""

import os
import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """The script `drunet`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` can report it
    from drunet_cli.cli.app import EXIT_INTERRUPTED, EXIT_TERMINATED, main

    code = main(sys.argv[1:])
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):  # an import that was interrupted may crash when the interpreter ends
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
