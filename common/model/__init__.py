"""A model as a folder: its arrays, how to build it, how inputs are prepared, where it comes from, how good it was."""

from consilium.common.model.folder import (
    CARD,
    RECORD,
    SUMMARY,
    WEIGHTS,
    read_arrays,
    read_record,
    write_model,
    write_record,
)
from consilium.common.model.record import (
    LabelTemperatures,
    ModelRecord,
    Preprocessing,
    Provenance,
    Residuals,
    Score,
    Served,
    Temperature,
)

__all__ = [
    "CARD",
    "RECORD",
    "SUMMARY",
    "WEIGHTS",
    "LabelTemperatures",
    "ModelRecord",
    "Preprocessing",
    "Provenance",
    "Residuals",
    "Score",
    "Served",
    "Temperature",
    "read_arrays",
    "read_record",
    "write_model",
    "write_record",
]
