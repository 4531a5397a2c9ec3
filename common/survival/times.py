"""How a time until an event is one number: the time, with a minus sign where it is censored.

The event had not happened by a censored time, and nothing is known of later. A time of 0 has a sign too. (The sign is
that of XGBoost's `survival:cox`.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Times:
    """Times of N patients.

    Args:
        times: `(N,)`, in the data's own unit, at least 0.
        events: mask `(N,)`: the event was seen at that time; else the patient was last seen then.
    """

    times: Floats
    events: Mask

    @classmethod
    def of_labels(cls, y: NDArray[np.generic]) -> "Times":
        """Return the times that labels `(N,)` stand for."""
        return cls(np.abs(y.astype(np.float64)), ~np.signbit(y.astype(np.float64)))

    def labels(self) -> NDArray[np.float32]:
        """Return the times as labels `(N,)`."""
        return np.where(self.events, self.times, -self.times).astype(np.float32)

    def taken(self, rows: NDArray[np.int64]) -> "Times":
        """Return the times of some rows; a row may be there twice."""
        return Times(self.times[rows], self.events[rows])

    def __len__(self) -> int:
        return len(self.times)
