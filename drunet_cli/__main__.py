"""`python -m drunet_cli` is `drunet`. This module imports little at first, so that Ctrl-C is silent from the beginning."""

import os
import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """The script `drunet`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` can report it
    from drunet_cli.cli.app import main
    from drunet_cli.errors import ExitCode

    code = main(sys.argv[1:])
    if code in (
        ExitCode.INTERRUPTED,
        ExitCode.TERMINATED,
    ):  # an import that was interrupted may crash when the interpreter ends
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
