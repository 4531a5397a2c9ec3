"""Entry point: `python -m consilium` is the `consilium` command."""

from consilium.cli import main

main()
