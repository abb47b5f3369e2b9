"""Which shapes of a benchmark's test split lie in a corpus: by id, and by the shape itself."""

from pointdistill.data.leaks.check import find_leaks
from pointdistill.data.leaks.records import HeldOut, Leak, LeakReport

__all__ = ["HeldOut", "Leak", "LeakReport", "find_leaks"]
