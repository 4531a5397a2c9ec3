"""What a site's pictures are like: their levels and sizes, in sentences for the site's own staff.

Levels are those of the files, before they are scaled; sizes are those before they are resized. What looks wrong is
said apart: pictures of one level, 12 bits in a file of 16, and sizes far from the study's.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from consilium.client.data.frames import EIGHT_BITS, SIXTEEN_BITS, Decoded, Frame, Levels
from consilium.common.study.image_task import PictureTask

_LEAST_USED = 0.1
"""Part of the levels that pictures use at least, unless they are dark, or stored in too many bits."""
_MOST_BITS = 14
"""Bits of what a detector has at most where it does not use all 16."""
_MOST_WHITE = 0.5
"""Part of the pixels that lie beyond white at most, in a range that fits."""
_ENLARGED, _REDUCED, _LONG = 2, 16, 2
"""Factors of size, and of length by width, from which on they are worth a look."""
_CHANNELS = ("red", "green", "blue")


@dataclass(eq=False)
class _Kind:
    """Sums over pictures whose levels mean the same: minimum, maximum and sum of each channel."""

    low: list[float]
    high: list[float]
    sums: list[float]
    num: int = 0
    pixels: int = 0
    white: int = 0

    @classmethod
    def of(cls, channels: int) -> "_Kind":
        return cls([np.inf] * channels, [-np.inf] * channels, [0.0] * channels)


@dataclass(eq=False)
class PictureFacts:
    """Levels and sizes of the pictures that were read, picture by picture."""

    task: PictureTask
    num: int = 0
    blank: int = 0
    more: int = 0
    with_more: int = 0
    named: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: dict[tuple[Levels | None, int], _Kind] = field(default_factory=dict)

    def add_file(self, decoded: Decoded) -> None:
        """Count the pictures of a file."""
        for frame in decoded.frames:
            self.add(frame)
        self.more += decoded.num_more
        self.with_more += decoded.num_more > 0
        self.named += decoded.named

    def add(self, frame: Frame) -> None:
        """Count a picture."""
        values = frame.values
        height, width, channels = values.shape
        full = EIGHT_BITS if values.dtype == np.uint8 else frame.full
        kind = self.kinds.setdefault((full, channels), _Kind.of(channels))
        kind.num += 1
        kind.pixels += height * width
        flat = True
        for channel in range(channels):
            plane = values[..., channel]
            low, high = float(plane.min()), float(plane.max())
            kind.low[channel], kind.high[channel] = min(kind.low[channel], low), max(kind.high[channel], high)
            kind.sums[channel] += float(plane.sum(dtype=np.float64 if plane.dtype.kind == "f" else np.int64))
            flat = flat and low == high
        if full != EIGHT_BITS and isinstance(self.task.pixel_range, tuple):
            kind.white += int((values > self.task.pixel_range[1]).sum()) // channels
        self.num += 1
        self.blank += flat
        self.sizes[width, height] += 1

    def seen(self) -> Iterator[str]:
        """Yield what the pictures are like."""
        for (full, channels), kind in self.kinds.items():
            yield f"levels of {kind.num} pictures: {_levels(kind, channels)}{_of(full)}"
        if self.sizes:
            yield self._sizes()

    def odd(self) -> Iterator[str]:
        """Yield what looks wrong."""
        if self.blank:
            yield f"{self.blank} of {self.num} pictures are of one level all over (black, white or blank)"
        if self.more:
            yield (
                f"{self.more} more pages or frames of {self.with_more} files are not read: only the first of each file "
                "is (of a volume, its slices)"
            )
        if self.named:
            yield (
                f"{self.named} DICOM files say themselves that names may be burnt into the picture "
                "(BurnedInAnnotation): models could learn them, so remove them before you take part"
            )
        for (full, _), kind in self.kinds.items():
            yield from _wrong_levels(kind, full, self.task)
        yield from self._wrong_sizes()

    def _sizes(self) -> str:
        smallest, largest = min(self.sizes, key=_area), max(self.sizes, key=_area)
        if len(self.sizes) == 1:
            return f"all of {_shown(smallest)} pixels (width x height)"
        usual = self.sizes.most_common(1)[0][0]
        return f"from {_shown(smallest)} to {_shown(largest)} pixels (width x height), most often {_shown(usual)}"

    def _wrong_sizes(self) -> Iterator[str]:
        if not self.sizes:
            return
        long = _median({size: max(size) for size in self.sizes}, self.sizes)
        short = _median({size: min(size) for size in self.sizes}, self.sizes)
        size = self.task.size
        if long * _ENLARGED <= size:
            yield f"pictures of {long:g} pixels are enlarged to the study's {size}, by a factor of {size / long:.3g}"
        if short >= size * _REDUCED:
            yield f"pictures of {short:g} pixels are reduced to the study's {size}, by a factor of {short / size:.3g}"
        if (
            odd := sum(count for sides, count in self.sizes.items() if max(sides) >= _LONG * min(sides))
        ) * 2 > self.num:
            yield f"{odd} of {self.num} pictures are at least {_LONG} times as long as wide, and squeezed into a square"


def _wrong_levels(kind: _Kind, full: Levels | None, task: PictureTask) -> Iterator[str]:
    low, high = min(kind.low), max(kind.high)
    if full == EIGHT_BITS:
        if high <= _LEAST_USED * full[1]:
            yield f"the largest pixel of {kind.num} pictures is {high:,.0f} of 255: they are nearly black"
        return
    if task.pixel_range in ("picture", "window"):
        return
    if isinstance(task.pixel_range, tuple):
        yield from _wrong_range(kind, low, high, task.pixel_range)
    elif full == SIXTEEN_BITS and high < 2**_MOST_BITS:
        bits = max(int(high).bit_length(), 8)
        yield (
            f"the largest pixel of {kind.num} pictures is {high:,.0f} of 65,535, as where {bits} of 16 bits are used: "
            f"ask the coordinator to set task.pixel_range = [0, {2**bits - 1}]"
        )
    elif full is not None and high - low <= _LEAST_USED * (full[1] - full[0]):
        yield (
            f"pixels of {kind.num} pictures are from {_number(low)} to {_number(high)}, less than a tenth of "
            f"{_number(full[0])} to {_number(full[1])}: ask the coordinator to set task.pixel_range"
        )


def _wrong_range(kind: _Kind, low: float, high: float, wanted: Levels) -> Iterator[str]:
    shown = f"task.pixel_range = [{wanted[0]:g}, {wanted[1]:g}]"
    pixels = f"pixels of {kind.num} pictures are from {_number(low)} to {_number(high)}"
    used = min(high, wanted[1]) - max(low, wanted[0])
    if used <= _LEAST_USED * (wanted[1] - wanted[0]):
        yield f"{pixels}, which is less than a tenth of {shown}: their levels mean something else than the study's"
    elif kind.white > _MOST_WHITE * kind.pixels:
        yield f"{pixels}, most of them beyond {shown}: their levels mean something else than the study's"


def _levels(kind: _Kind, channels: int) -> str:
    means = [total / max(kind.pixels, 1) for total in kind.sums]
    parts = [
        f"{_number(low)} to {_number(high)}, mean {_number(round(mean, 2))}"
        for low, high, mean in zip(kind.low, kind.high, means, strict=True)
    ]
    return (
        parts[0] if channels == 1 else "; ".join(f"{name} {part}" for name, part in zip(_CHANNELS, parts, strict=True))
    )


def _of(full: Levels | None) -> str:
    if full is None:
        return ""
    return f" (of {_number(full[1])})" if full[0] == 0 else f" (of {_number(full[0])} to {_number(full[1])})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"


def _median(lengths: dict[tuple[int, int], int], counts: Counter[tuple[int, int]]) -> float:
    return float(np.median(np.repeat([lengths[size] for size in counts], list(counts.values()))))
