"""Names of columns that say whose a row is, or which: a model would learn from them who stood where in a file."""

import re

_ID = re.compile(
    r"(?i:(^|[_\W])(id|ids|uid|guid|uuid|mrn|nhs|ssn|pid|nr|identifier)$)|[a-z](Id|ID|Nr|NR)$"
    r"|(?i:^(patient|patienten|subject|case|fall|study|record|accession|encounter|visit|sample)"
    r"([_\W]?(id|no|nr|num|number|nummer|name|code|uid|uuid))$)|(?i:^((row|case|patient)[_\W]?)?(index|idx)$)|(?i:^(patient|subject|case)$)"
)


def names_identifiers(column: str) -> bool:
    """Return whether a column's name says that it identifies rows or patients, as `PatientID`, `mrn` and `uuid` do."""
    return _ID.search(column) is not None
