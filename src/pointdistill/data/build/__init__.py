"""From a source to a corpus on disk."""

from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.publish import BuildReport
from pointdistill.data.build.retry import retry_corpus
from pointdistill.data.build.run import BuildSettings, build_corpus, build_source

__all__ = [
    "BuildReport",
    "BuildSettings",
    "ShapeLimits",
    "build_corpus",
    "build_source",
    "retry_corpus",
]
