"""The `codi` command. Each module has one group of commands: it parses, makes one library call, and prints.

This module imports little, so that Ctrl-C is handled from the first moment; `application` has the commands.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from codi_hub import interrupts


def main(args: list[str] | None = None) -> NoReturn:
    """Run the console script; exit with 0, 1 (something failed), 2 (wrong usage) or 130 (Ctrl-C, SIGTERM, SIGHUP).

    Args:
        args: the arguments; None: the process's own, whose signals and streams are prepared then.
    """
    if args is not None:
        from codi_hub.cli.application import run

        sys.exit(run(args))
    code = None
    try:
        interrupts.install()
        from codi_hub.cli import application, streams

        streams.prepare()
        code = application.run(sys.argv[1:])
        interrupts.finish(code)
    except KeyboardInterrupt:  # before the command, or after its end
        if code is None:
            print("Interrupted.", file=sys.stderr)
            code = interrupts.EXIT_CODE
        interrupts.finish(code)
    sys.exit(code)
