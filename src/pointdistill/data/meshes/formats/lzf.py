"""LZF, Marc Lehmann's compression, by which PCD files are packed.

A control byte below 32 stands before as many literal bytes and one more. Any other holds a length less 2 in its
upper three bits (7: the next byte is to be added) and, in the lower five and the byte that follows, how far back
the repeated bytes begin, less 1.
"""

from __future__ import annotations

from pointdistill.errors import DataError

_LITERAL = 32
_LONG = 7


def unpack(packed: bytes, size: int) -> bytes:
    """The ``size`` bytes that were packed; a packed MB costs at most a quarter of a second.

    Raises:
        DataError: if they are not exactly as many, or the stream is damaged.
    """
    out = bytearray()
    at = 0
    try:
        while at < len(packed) and len(out) <= size:
            control = packed[at]
            at += 1
            if control < _LITERAL:
                out += packed[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == _LONG:
                length += packed[at]
                at += 1
            start = len(out) - ((control & 31) << 8 | packed[at]) - 1
            at += 1
            if start < 0:
                break
            found = out[start : start + length + 2]
            # What is repeated may reach into what it makes.
            out += (found * ((length + 2) // len(found) + 1))[: length + 2]
    except IndexError:
        at = -1
    if at != len(packed) or len(out) != size:
        msg = f"compressed data do not unpack to the {size:,} bytes that are stated; the file is damaged"
        raise DataError(msg)
    return bytes(out)
