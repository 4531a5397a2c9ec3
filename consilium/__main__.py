"""Entry point: `python -m consilium` is the `consilium` command."""

import os
import sys


def _leave_out_working_directory() -> None:
    """Take away what `-m` puts in front of the import path: a user's `common.py` or `server/` is not ours.

    Where these packages themselves lie there, and are not installed, it stays.
    """
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 (pathlib imports much)
    if not sys.flags.safe_path and os.path.realpath(sys.path[0]) != ours:
        del sys.path[0]


if __name__ == "__main__":
    _leave_out_working_directory()
    from consilium.commands.main import main

    main()
