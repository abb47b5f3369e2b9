"""Text cut into tokens at white space, and the numbers that they spell, read many at a time.

Eight characters are loaded as one 64-bit integer, and three multiplications add up all eight digits. Whatever is
not plain digits with a point and a sign is left to NumPy's own parser, token by token. Both give the float nearest
to what the text says: the digits and the power of ten are exact floats, divided once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.records import Floats, Indices

_Bits = NDArray[np.uint64]

_CHUNK = 1 << 13
"""Numbers read at a time, so that intermediate arrays stay in a processor's cache."""

_MARGIN = b"\n" * 16
"""Padding around a text, so that eight characters can be loaded at any token, and 16 before its end."""

_MINUS, _PLUS, _SLASH, _SPACE, _LINE_END = b"-+/ \n"
_CAPITAL = np.uint8(32)
_MOST_WHOLE, _MOST_FRACTION, _MOST_DIGITS = 8, 16, 19


def _every(byte: int) -> np.uint64:
    return np.uint64(byte * 0x0101010101010101)


_ZEROS, _POINTS, _ONES = _every(ord("0")), _every(ord(".")), _every(1)
_TOP, _BELOW_TOP, _PAST_NINE = _every(0x80), _every(0x7F), _every(0x76)
_LAST = np.array([(2**64 - 1) << (8 * (8 - n)) & (2**64 - 1) for n in range(9)], np.uint64)
"""Mask n keeps the last n of eight characters."""

_PLACE = np.uint64(sum(k << (8 * (7 - k)) for k in range(8)))
"""Multiplied by 2^(8 k), its top byte is k."""

_TENS = np.array([10**n for n in range(_MOST_FRACTION + 1)], np.uint64)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a text, and some of its lines. Sizes: W tokens, L lines, none blank."""

    text: bytes
    starts: Indices  # (W,), of each token in the text
    ends: Indices  # (W,)
    first: Indices  # (L,), the first token of each line
    counts: Indices  # (L,), how many tokens each line has

    def __len__(self) -> int:
        return len(self.first)

    def lines(self, which: slice | NDArray[np.bool_]) -> Tokens:
        """Some of the lines."""
        return Tokens(self.text, self.starts, self.ends, self.first[which], self.counts[which])

    def line(self, number: int, *, skip: int = 0) -> bytes:
        """One line of the text, from its token ``skip`` on."""
        first, last = self.first[number] + skip, self.first[number] + self.counts[number] - 1
        return self.text[self.starts[first] : self.ends[last]] if first <= last else b""

    def lines_that_begin(self, token: bytes) -> NDArray[np.bool_]:
        """Whether the first token of each line is this one, in lower or upper case; (L,)."""
        begin = self.starts[self.first]
        same: NDArray[np.bool_] = self.ends[self.first] - begin == len(token)
        codes = np.frombuffer(self.text, np.uint8)
        for place, letter in enumerate(token):
            same &= codes[begin + place] | _CAPITAL == letter
        return same


def split_tokens(text: bytes) -> Tokens:
    """Split a text, whose lines end in LF, at white space."""
    text = b"".join([_MARGIN, text, _MARGIN])
    codes = np.frombuffer(text, np.uint8)
    # The white space of the C library; other control characters belong to tokens, which then are not numbers.
    blank = codes - np.uint8(9) < 5
    blank |= codes == _SPACE
    edges = np.flatnonzero(blank[1:] != blank[:-1])
    edges += 1
    starts, ends = edges[::2].copy(), edges[1::2].copy()
    # Tokens before each line's end: the last line's include all.
    before = np.searchsorted(starts, np.flatnonzero(codes == _LINE_END))
    before = before[np.flatnonzero(before[1:] != before[:-1]) + 1]
    counts = np.diff(before, prepend=0)
    return Tokens(text, starts, ends, before - counts, counts)


def read_decimals(tokens: Tokens, which: Indices) -> tuple[Floats, Indices]:
    """The numbers that some tokens spell.

    Args:
        tokens: the text.
        which: (N,) tokens.

    Returns:
        values: (N,); undefined where a token is not plain.
        odd: entries of ``which`` whose tokens are not plain: other characters, an exponent, too many digits.
    """
    values, plain = np.empty(len(which)), np.empty(len(which), bool)
    codes, eights = _views(tokens.text)
    for begin in range(0, len(which), _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        starts, ends = tokens.starts[which[chunk]], tokens.ends[which[chunk]]
        values[chunk], plain[chunk] = _decimals(codes, eights, starts, ends)
    return values, np.flatnonzero(~plain)


def read_integers(tokens: Tokens, which: Indices) -> tuple[Indices, Indices]:
    """The whole numbers at the head of some tokens, which a slash or the token's end must follow.

    Args:
        tokens: the text.
        which: (N,) tokens.

    Returns:
        values: (N,); undefined where a token is not plain.
        odd: entries of ``which`` whose tokens are not plain: other characters, 8 or more digits.
    """
    values, plain = np.empty(len(which), np.int64), np.empty(len(which), bool)
    codes, eights = _views(tokens.text)
    signed = b"-" in tokens.text
    for begin in range(0, len(which), _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        starts, ends = tokens.starts[which[chunk]], tokens.ends[which[chunk]]
        values[chunk], plain[chunk] = _integers(codes, eights, starts, ends, signed=signed)
    return values, np.flatnonzero(~plain)


def _views(text: bytes) -> tuple[NDArray[np.uint8], _Bits]:
    """The characters, and for each the eight characters that begin there as one integer, the first lowest."""
    eights: _Bits = np.ndarray((len(text) - 7,), "<u8", text, strides=(1,))
    return np.frombuffer(text, np.uint8), eights


def _decimals(
    codes: NDArray[np.uint8], eights: _Bits, starts: Indices, ends: Indices
) -> tuple[Floats, NDArray[np.bool_]]:
    """Numbers as sign, whole digits, point and fraction.

    Each part is loaded so that it *ends* with the eight characters: a mask then drops what stands before it, and
    the digits have their places whatever their number. A fraction of more than eight digits takes two loads.
    """
    leading = codes[starts]
    negative = leading == _MINUS
    digits_from = starts + (negative | (leading == _PLUS))
    place = _find_point(eights[digits_from])
    point = np.where(place < 8, np.minimum(digits_from + place, ends), ends)
    whole, fraction = point - digits_from, np.maximum(ends - point - 1, 0)
    plain = (whole <= _MOST_WHOLE) & (fraction <= _MOST_FRACTION)
    plain &= (whole + fraction <= _MOST_DIGITS) & (whole + fraction > 0)
    np.clip(whole, 0, _MOST_WHOLE, out=whole)
    np.clip(fraction, 0, _MOST_FRACTION, out=fraction)
    number, wrong = _digits(eights[point - 8], whole)
    number *= _TENS[fraction]
    low, wrong_low = _digits(eights[ends - 8], np.minimum(fraction, 8))
    number += low
    wrong |= wrong_low
    if int(fraction.max(initial=0)) > 8:
        high, wrong_high = _digits(eights[ends - 16], np.maximum(fraction - 8, 0))
        number += high * _TENS[8]
        wrong |= wrong_high
    # Up to 2^53 the digits are an exact float, so the division rounds once, as a correct parser does.
    plain &= (wrong == 0) & (number <= 2**53)
    values = number.astype(np.float64)
    values /= _TENS[fraction].astype(np.float64)
    return np.where(negative, -values, values), plain


def _integers(
    codes: NDArray[np.uint8], eights: _Bits, starts: Indices, ends: Indices, *, signed: bool
) -> tuple[Indices, NDArray[np.bool_]]:
    """Numbers that end at the first character that is no digit."""
    negative = codes[starts] == _MINUS if signed else None
    if negative is not None:
        starts = starts + negative
    digits = eights[starts] ^ _ZEROS
    length = _lowest(_past_nine(digits))
    after = starts + length
    plain = (length > 0) & (length < 8)
    plain &= (codes[after] == _SLASH) | (after == ends)
    digits <<= (64 - 8 * np.maximum(length, 1)).astype(np.uint64)
    values = _sum_digits(digits).astype(np.int64)
    return values if negative is None else np.where(negative, -values, values), plain


def _find_point(characters: _Bits) -> Indices:
    """How many of eight characters come before the first point; 8 if there is none."""
    matching = characters ^ _POINTS
    # The lowest byte that is zero borrows first; bytes above it do not matter.
    return _lowest((matching - _ONES) & ~matching & _TOP)


def _lowest(marks: _Bits) -> Indices:
    """The index of the lowest byte whose top bit is set, all other bits being 0; 8 if there is none."""
    one = marks & (~marks + np.uint64(1))
    place = ((one >> np.uint64(7)) * _PLACE) >> np.uint64(56)
    return np.where(one == 0, 8, place.astype(np.int64))


def _digits(characters: _Bits, count: Indices) -> tuple[_Bits, _Bits]:
    """The number that the last ``count`` of eight characters spell, and marks where one is not a digit."""
    digits = characters ^ _ZEROS
    digits &= _LAST[count]
    return _sum_digits(digits), _past_nine(digits)


def _past_nine(values: _Bits) -> _Bits:
    """Set the top bit of each byte above 9."""
    marks: _Bits = (((values & _BELOW_TOP) + _PAST_NINE) | values) & _TOP
    return marks


def _sum_digits(digits: _Bits) -> _Bits:
    """Eight digits, the first in the lowest byte, as one number: added up in pairs, then fours, then all eight."""
    pairs = (digits * np.uint64(10 << 8 | 1)) >> np.uint64(8) & np.uint64(0x00FF00FF00FF00FF)
    fours = (pairs * np.uint64(100 << 16 | 1)) >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF)
    number: _Bits = (fours * np.uint64(10000 << 32 | 1)) >> np.uint64(32)
    return number


def spelled(tokens: Tokens, which: Indices, *, until: bytes | None = None) -> list[bytes]:
    """Some tokens as bytes, each cut at the mark ``until``, unless that is None."""
    starts, ends = tokens.starts[which].tolist(), tokens.ends[which].tolist()
    text = tokens.text
    texts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return texts if until is None else [token.partition(until)[0] for token in texts]
