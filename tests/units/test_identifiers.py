"""Names of columns that identify a patient, and names that only look so."""

import pytest

from consilium.common.data.identifiers import names_identifiers

SAY_IT = [
    "id",
    "ID",
    "PatientID",
    "patient_id",
    "mrn",
    "MRNumber",
    "uuid",
    "HospitalNumber",
    "NHSNumber",
    "nhs_number",
    "KVNR",
    "Versichertennummer",
    "pat_no",
    "PatNo",
    "HospNo",
    "medical_record_number",
    "PatientIdentifier",
    "IDNumber",
    "id_number",
    "patient_id_1",
    "ID_Patient",
    "pseudonym",
    "SampleBarcode",
    "case_id",
    "StudyName",
    "caseNr",
    "sampleNr",
    "index",
    "row_index",
    "patient",
    "case_number",
    "Patient",
    "subject",
]
FEATURES = [
    "age",
    "sex",
    "chol",
    "idle",
    "grid",
    "humid",
    "valid",
    "paid",
    "width",
    "side",
    "bmi",
    "period",
    "num_pregnancies",
    "casein",
    "study_hours",
    "sample_weight",
    "hospital",
    "sum",
    "acid",
    "lipid",
    "solid",
    "rapid",
    "index_finger",
    "code",
    "hematocrit",
    "fluid",
    "nr",
]


@pytest.mark.parametrize("name", SAY_IT)
def test_names_that_identify(name: str) -> None:
    """Whole words, in any spelling; a number or a code of a patient, a case, a hospital."""
    assert names_identifiers(name)


@pytest.mark.parametrize("name", FEATURES)
def test_names_that_only_look_so(name: str) -> None:
    """The letters of such a word within another one say nothing."""
    assert not names_identifiers(name)
