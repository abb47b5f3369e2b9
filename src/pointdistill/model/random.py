"""Random numbers as a pure function of (key, stream, counter).

A pretraining view depends only on (seed, epoch, shape index), not on the batch that a shape is in, the number of
processes, or what was drawn before. So each shape has a 64-bit key, and every draw hashes that key with the name
of what is drawn. All arithmetic but the last step is on integers, so a CPU and a GPU draw the same bits.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), or for orders that of
MurmurHash3 (Appleby, 2011).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# 0x9E3779B97F4A7C15, the odd integer nearest 2**64 / golden ratio, as int64.
_GOLDEN = -7046029254386353131
_GOLDEN_INVERSE = -1018231460777725123  # their product is 1, modulo 2**64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_MIX_32 = (-1640531535, -2048144789, -1028477387)  # odd, as int32; the last two are MurmurHash3's


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """A logical shift; torch's own shift of int64 is arithmetic and fills with the sign bit."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64; products wrap, as in unsigned arithmetic."""
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def sample_keys(*, seed: int, epoch: int | Tensor, index: Tensor) -> Tensor:
    """Keys (B,) int64, one per sample, from a run's seed, the epoch, and the indices of shapes (B,) int64."""
    key = torch.full_like(index, seed)
    for part in (epoch, index):
        key = _mix(key + _GOLDEN) + part
    return _mix(key + _GOLDEN)


def random_order(place: Any, low: Any, high: Any) -> Any:
    """Random int32 in [0, 2**31), one for each place, to sort the places by; ties are possible.

    They have half the bits of ``KeyedRandom.bits`` and cost a third, since a crop needs one for every point inside
    its box.

    Args:
        place: int32 numbers of the places, as a tensor or a NumPy array; both give the same bits.
        low: int32 random bits of the order, broadcast against the places.
        high: 32 more random bits, which make orders with similar ``low`` differ.
    """
    # Shifts of int32 fill with the sign bit; the masks turn them into logical shifts.
    mixed = place * _MIX_32[0] + low
    mixed ^= (mixed >> 15) & 0x1FFFF
    mixed *= _MIX_32[1]
    mixed ^= high
    mixed ^= (mixed >> 13) & 0x7FFFF
    mixed *= _MIX_32[2]
    return mixed & 0x7FFFFFFF


class KeyedRandom:
    """Random numbers for a batch of B samples, each from its own key; draws with different names are independent.

    Args:
        keys: (B,) int64, from ``sample_keys``.
        stream: prefix of every stream name, so that two users of the same keys do not share draws.
    """

    def __init__(self, keys: Tensor, stream: str = "") -> None:
        self.keys = keys
        self.stream = stream

    def child(self, stream: str) -> KeyedRandom:
        """The same keys under another prefix."""
        return KeyedRandom(self.keys, f"{self.stream}/{stream}")

    def bits(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) int64, all 64 bits uniform.

        An entry depends only on its own index along each axis, so a longer axis begins with the same numbers.
        """
        mixed = _mix(self.keys + stream_number(f"{self.stream}/{name}"))
        for size in shape:
            counter = torch.arange(1, size + 1, device=self.keys.device)
            # That is ``mixed`` + ``counter`` · _GOLDEN. But a product of counters alone is an index to PyTorch's
            # compiler, which would compute it in 32 bits, and Triton refuses that.
            mixed = _mix((mixed[..., None] * _GOLDEN_INVERSE + counter) * _GOLDEN)
        return mixed

    def uniform(
        self, name: str, shape: Sequence[int] = (), *, low: float = 0.0, high: float = 1.0
    ) -> Tensor:
        """(B, *shape) float32 in [low, high), on a grid of 2**-24 of the range."""
        fraction = _shift_right(self.bits(name, shape), 40).to(torch.float32) * 2.0**-24
        return low + (high - low) * fraction

    def integers(self, name: str, high: Tensor) -> Tensor:
        """int64 of the shape of ``high`` (first axis B), uniform in [0, high)."""
        fraction = _shift_right(self.bits(name, high.shape[1:]), 11).to(torch.float64) * 2.0**-53
        return (fraction * high).to(torch.int64)


# Knuth's multiplicative constant; spreads the 32-bit hashes of names over 64 bits.
_GOLDEN_LOW = 2654435761


def stream_number(name: str) -> int:
    """An int64 that belongs to the name of a stream; a constant, as a compiler has to be told (crc32 is in C)."""
    product = zlib.crc32(name.encode()) * _GOLDEN_LOW
    return (product + 2**63) % 2**64 - 2**63  # its lowest 64 bits
