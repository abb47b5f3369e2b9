"""From a source to a corpus on disk."""

from pointdistill.data.corpus_building.build import BuildSettings, build_corpus, build_source
from pointdistill.data.corpus_building.commit import BuildReport
from pointdistill.data.corpus_building.limits import ShapeLimits
from pointdistill.data.corpus_building.retry import retry_corpus

__all__ = [
    "BuildReport",
    "BuildSettings",
    "ShapeLimits",
    "build_corpus",
    "build_source",
    "retry_corpus",
]
