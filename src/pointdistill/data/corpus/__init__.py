"""Corpora on disk: a folder of HDF5 shards and a ``corpus.json``; see ``docs/corpus-format.md``."""

from pointdistill.data.corpus.inspect import verify_corpus
from pointdistill.data.corpus.reader import Corpus, Shape, open_corpus

__all__ = ["Corpus", "Shape", "open_corpus", "verify_corpus"]
