"""From a source to a corpus on disk."""

from pointdistill.data.build.publish import BuildReport
from pointdistill.data.build.run import Progress, build_corpus

__all__ = ["BuildReport", "Progress", "build_corpus"]
