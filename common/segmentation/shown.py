"""Test pictures with outlines that a site lets leave: pixels alone, in one size, so that nothing of them is decoded.

A payload is up to six pictures of 256 x 256 pixels one after the other, each row by row, red, green and blue as a byte:
no header, no name, no text.
"""

import numpy as np
from numpy.typing import NDArray

from consilium.common.errors import ProtocolError

FOLDER = "overlays"
"""Where they lie: in a site's folder of a run as PNG, in the coordinator's one file of pixels for each site."""
SIDE = 256
MOST_SHOWN = 6
_BYTES = SIDE * SIDE * 3
MOST_BYTES = MOST_SHOWN * _BYTES

Shown = NDArray[np.uint8]


def shown_in(payload: bytes | memoryview) -> Shown:
    """Return the pictures in a payload `(n, 256, 256, 3)`, at most six.

    Raises:
        ProtocolError: it is no whole number of pictures, or more than these.
    """
    count, more = divmod(len(payload), _BYTES)
    if more or not 0 < count <= MOST_SHOWN:
        raise ProtocolError(
            f"got {len(payload)} bytes of test pictures, expected {_BYTES} for each of 1 to {MOST_SHOWN} pictures"
        )
    return np.frombuffer(payload, dtype=np.uint8).reshape(count, SIDE, SIDE, 3)
