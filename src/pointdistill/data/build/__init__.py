"""From a source to a corpus on disk."""

from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.publish import BuildReport
from pointdistill.data.build.retry import retry_corpus
from pointdistill.data.build.run import Progress, build_corpus

__all__ = ["BuildReport", "Progress", "ShapeLimits", "build_corpus", "retry_corpus"]
