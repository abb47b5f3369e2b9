"""Which shapes of a benchmark's test split lie in a corpus: by id, and by the shape itself."""

from pointdistill.data.leaks.find import HeldOut, Leak, LeakReport, find_leaks

__all__ = ["HeldOut", "Leak", "LeakReport", "find_leaks"]
