"""Names of columns that say whose a row is, or which: a model would learn from them who stood where in a file."""

import re

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SAY_IT = frozenset(
    [
        "id",
        "ids",
        "uid",
        "guid",
        "uuid",
        "mrn",
        "nhs",
        "ssn",
        "kvnr",
        "pid",
        "identifier",
        "identifiers",
        "pseudonym",
        "barcode",
        "patientid",
        "subjectid",
        "caseid",
        "rowid",
        "recordid",
        "studyid",
        "sampleid",
        "visitid",
        "versichertennummer",
        "idx",
    ]
)
"""Words that say so by themselves."""
_OF_ONE = frozenset(
    [
        "patient",
        "patienten",
        "pat",
        "subject",
        "case",
        "fall",
        "study",
        "record",
        "accession",
        "encounter",
        "visit",
        "sample",
        "hospital",
        "hosp",
        "mr",
        "versicherten",
        "versicherung",
    ]
)
_NUMBER = frozenset(["no", "nr", "num", "number", "nummer", "name", "code"])
"""These say so together with one of the words before, or `nr` at the end of any name."""
_ALONE = frozenset({"index", "patient", "subject", "case", "rowindex", "row index", "case index", "patient index"})


def names_identifiers(column: str) -> bool:
    """Return whether a column's name says that it identifies rows or patients, as `PatientID`, `mrn` and `uuid` do.

    Words are told apart by signs, by capitals within a name, and by digits.
    """
    words = [word.lower() for word in _WORD.findall(column)]
    if _SAY_IT & set(words) or " ".join(words) in _ALONE or (len(words) > 1 and words[-1] == "nr"):
        return True
    joined = "".join(words)
    pairs = {first + last for first in _OF_ONE for last in _NUMBER}
    return joined in pairs or bool(_OF_ONE & set(words) and _NUMBER & set(words))
