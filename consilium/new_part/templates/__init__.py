"""Modules of new packages, each complete and tested as it stands: `my_part` and `MyPart` become the part's own name."""
