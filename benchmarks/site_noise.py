"""Noise that sites share in secure sums: how long it takes a site, and how much of it a sum of 50 sites has.

    python benchmarks/site_noise.py        # writes benchmarks/results/site_noise.txt

On one core, seconds of the processor, the least of five. The numbers drawn one at a time are those of
`client/privacy/discrete.py`. The sum is measured with 17 colluding sites' noise taken off, as its promise is.
"""

import platform
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from consilium.client.privacy.discrete import discrete_gaussian
from consilium.client.privacy.secure.noise import add_noise
from consilium.common.host.files import write_atomically
from consilium.common.privacy.secure.masks import Words
from consilium.common.privacy.secure.noise import NoiseShare

RESULTS = Path(__file__).parent / "results" / "site_noise.txt"
MILLION, TIMES, SLOW = 1_000_000, 5, 2_000
HONEST, SITES = 33, 50


def least_seconds(work: Callable[[], object]) -> float:
    """Return the least time of the processor that some work takes."""
    found = []
    for _ in range(TIMES):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def measured(share: NoiseShare) -> tuple[float, float]:
    """Return the seconds of a site for a million numbers, and the deviation of the honest sites' noise in clips."""
    total = Words.zeros(MILLION, 2)
    seconds = least_seconds(lambda: add_noise(Words.zeros(MILLION, 2), share, seed=bytes(32)))
    for number in range(share.honest):
        add_noise(total, share, seed=number.to_bytes(32, "big"))
    return seconds, float(total.narrow.view(np.int32).std()) / share.length


def main() -> None:
    """Measure, and write the table."""
    lines = [
        f"Noise of {SITES} sites, of which {HONEST} are counted on, for a million parameters, on one core",
        f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}",
        "",
        "times the clip  words of the clip  words of a share's deviation  a site's s  measured / promised",
    ]
    for multiplier in (0.1, 1.0, 5.0, 100.0):
        share = NoiseShare(multiplier, HONEST, SITES)
        seconds, deviation = measured(share)
        words = f"{multiplier:14g}  {share.length:17,}  {share.deviation:28,}"
        lines.append(f"{words}  {seconds:10.3f}  {deviation / multiplier:19.5f}")
    slow = least_seconds(lambda: [discrete_gaussian(Fraction(10**12)) for _ in range(SLOW)]) * MILLION / SLOW
    lines += ["", f"one at a time, a million numbers would take {slow:.0f} s", ""]
    write_atomically(RESULTS, "\n".join(lines).encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
