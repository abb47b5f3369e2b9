"""From a source to a corpus on disk."""

from pointdistill.data.prepare.build import BuildSettings, build_corpus, build_source
from pointdistill.data.prepare.commit import BuildReport
from pointdistill.data.prepare.limits import ShapeLimits
from pointdistill.data.prepare.retry import retry_corpus

__all__ = [
    "BuildReport",
    "BuildSettings",
    "ShapeLimits",
    "build_corpus",
    "build_source",
    "retry_corpus",
]
