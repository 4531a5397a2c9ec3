"""The engines of a federation in one process, by name; light, for the command line reads it."""

from typing import Literal

EngineName = Literal["exact", "batched"]
"""How sites in one process train: one after the other, as deployed, or those that are alike as one stack."""
