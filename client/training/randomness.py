"""Random numbers of private training: from the operating system's entropy, never from a study's seed.

Each call draws a new key of 256 bits and expands it by ChaCha20 (RFC 8439): whoever lacks the key cannot tell the
numbers from independent ones, however many they see. (PyTorch's and NumPy's generators are made for speed: from what
they gave, the first one's state, and so all later noise, can be computed; the other's was never meant to withstand
that.) Normal numbers by Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958:

    z = sqrt(-2 log(1 - u)) cos(2 pi v),  sqrt(-2 log(1 - u)) sin(2 pi v);   u, v uniform on multiples of 2**-53

with the radius in float64. No |z| is above 8.6, which a true one exceeds with probability 1e-17. That floating-point
numbers are no real ones is the limit of every such noise (Mironov: On Significance of the Least Significant Bits for
Differential Privacy, CCS 2012).
"""

import math
from collections.abc import Callable, Iterator

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

Entropy = Callable[[int], bytes]
"""`entropy(count)` gives so many bytes that nobody can guess: `os.urandom`, and in tests whatever they choose."""

_KEY, _NONCE = 32, bytes(16)  # every key is used once, so the nonce may be the same
_AT_ONCE = 2**16
"""So many small numbers are made at once: one by one, calls would take longer than numbers."""


def uniform(count: int, entropy: Entropy) -> Tensor:
    """Return independent numbers, uniform on [0, 1): float64 `(count,)`, on the CPU."""
    if not count:
        return torch.empty(0, dtype=torch.float64)
    stream = Cipher(algorithms.ChaCha20(entropy(_KEY), _NONCE), mode=None).encryptor()
    words = torch.frombuffer(bytearray(stream.update(bytes(8 * count))), dtype=torch.int64)
    return words.bitwise_right_shift_(11).bitwise_and_((1 << 53) - 1).double().mul_(2.0**-53)


def normal(count: int, entropy: Entropy) -> Tensor:
    """Return independent standard normal numbers: float32 `(count,)`, on the CPU."""
    half = (count + 1) // 2
    u, v = uniform(2 * half, entropy).view(2, half)
    radius, angle = u.neg_().log1p_().mul_(-2).sqrt_().float(), v.mul_(2 * math.pi).float()
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def draws(draw: Callable[[int, Entropy], Tensor], size: int, *, times: int, entropy: Entropy) -> Iterator[Tensor]:
    """Yield `times` independent tensors `(size,)` of `uniform` or `normal` numbers."""
    together = max(1, _AT_ONCE // max(1, size))
    for start in range(0, times, together):
        count = min(together, times - start)
        yield from draw(size * count, entropy).view(count, size)
