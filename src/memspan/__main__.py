"""`memspan`, `python -m memspan`, `torchrun -m memspan`: the command as a process."""

from __future__ import annotations

import atexit
import os
import sys


def main() -> None:
    """Run the command, and end the process at once: to take millions of objects apart would take longer than `ls`, and
    libraries complain of those that are left."""
    try:
        from memspan.cli import app

        app()
    except KeyboardInterrupt:  # before a command was there to end
        os._exit(130)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:  # whoever read it is gone
            os._exit(1)
        os._exit(end.code or 0)


if __name__ == "__main__":
    main()
