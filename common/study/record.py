"""The base of every configuration and protocol record."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Immutable, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
