"""`python -m consilium.pretrained FOLDER`: what a study says of a pretrained model of texts in a local folder."""

import sys
from pathlib import Path

import tomli_w

from consilium.client.models.text_folder import described
from consilium.common.errors import ConsiliumError


def main(arguments: list[str]) -> None:
    """Print the tables of a study.

    Raises:
        SystemExit: with the sentence that says why nothing can be printed.
    """
    if len(arguments) != 1:
        raise SystemExit("usage: python -m consilium.pretrained FOLDER")
    try:
        sys.stdout.write(tomli_w.dumps(described(Path(arguments[0]))))
    except ConsiliumError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
