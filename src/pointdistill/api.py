"""The calls of a Python program: encoders that embed files, folders and arrays, and search among their features.

``pointdistill.load_encoder``, ``embed``, ``search`` and ``Encoder`` are those of this module. Features are those
of the ``embed`` command: the same code reads the shapes and draws their points.

Sizes: n shapes, B clouds, N points of a cloud, F the length of a feature vector, D the encoder's width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pointdistill.data.files.packed_tars import temporary_folder
from pointdistill.engine.weights import encoders
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder as Network
from pointdistill.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pointdistill.engine.embedding.memory import Embedding
    from pointdistill.engine.embedding.search import SearchReport


class ArrayLike(Protocol):
    """Anything that NumPy turns into an array: an array, a tensor, a column of a table."""

    def __array__(self, dtype: Any = ..., /) -> NDArray[Any]: ...


Shape: TypeAlias = str | os.PathLike[str] | ArrayLike
"""A path, or points (N, 3) in any unit, z up."""

Shapes: TypeAlias = Shape | Iterable[Shape] | Mapping[str, ArrayLike]
"""One shape or several: files, folders, archives, corpora, arrays (N, 3) or (B, N, 3), or arrays by name."""


class Encoder(Network):
    """A trained encoder: raw clouds, files and folders in, features out; ``load_encoder`` returns one.

    It is a ``torch.nn.Module``. A call on a (B, N, 3) float tensor of raw points returns an ``EncoderOutput`` with
    the CLS feature (B, D), patch features (B, P, D) and patch centres (B, P, 3). To train it, call
    ``requires_grad_(True)`` and ``train()``.
    """

    def __init__(self, config: EncoderConfig, *, source: Path | None = None) -> None:
        """Make an encoder of this architecture.

        Args:
            config: the architecture.
            source: the folder or file that its weights come from, for their record of licences and training.
        """
        super().__init__(config)
        self.source = source
        self._facts: dict[str, Any] = {} if source is None else encoders.read_facts(source)

    def encode(
        self,
        shapes: Shapes,
        *,
        features: str = "moments",
        points: int | None = None,
        draws: int | None = None,
        turns: int | None = None,
        seed: int = 0,
        up: str = "z",
        batch_size: int | None = None,
        workers: int = 0,
    ) -> NDArray[np.float32]:
        """One feature vector for each shape, in order: (n, F) float32, computed on the encoder's own device.

        Args:
            shapes: as for ``embed``, like all other arguments.
            features: ``moments`` (CLS, mean, deviation and skew of the patches), ``pooled`` (CLS, mean, maximum)
                or ``cls``; ``embed`` has ``patches`` and ``points`` too.
            points: points of each draw.
            draws: draws at each angle that are averaged.
            turns: angles about z.
            seed: of the points that are drawn.
            up: up axis of shapes that do not state their own.
            batch_size: shapes at once.
            workers: processes that read files.

        Raises:
            DataError: for the first shape that cannot be used; ``embed`` lists such shapes instead.
            ConfigError: for a setting that is not accepted.
        """
        from pointdistill.engine.embedding.compute import PER_SHAPE

        if features not in PER_SHAPE:
            msg = (
                f"features must be moments, pooled or cls, got {features!r}; embed() gives one vector per patch "
                "or point"
            )
            raise ConfigError(msg, settings=("features",))
        found = embed(
            shapes,
            encoder=self,
            features=features,
            points=points,
            draws=draws,
            turns=turns,
            seed=seed,
            up=up,
            batch_size=batch_size,
            workers=workers,
        )
        for name, reason in found.failed:
            msg = f"{name}: {reason}"
            raise DataError(msg)
        return found.features

    def save_pretrained(self, folder: str | os.PathLike[str], *, half: bool = False) -> Path:
        """Write ``model.safetensors`` and ``config.json``, which ``load_encoder`` reads; returns the folder.

        The licences of the training data go along; so do the training record and the scores if the weights are
        still those that were loaded.

        Args:
            folder: created if absent; an encoder in it is replaced.
            half: store the weights in float16.

        Raises:
            DataError: if the folder holds anything else.
            CheckpointError: if a weight is too large for float16.
        """
        from pointdistill.engine.sharing.export import export_encoder

        output = Path(folder)
        encoders.check_free_for_encoder(output)
        if self.source is not None and self._is_as_stored(self.source):
            export_encoder(self.source, output, half=half)
            return output
        training = self._facts.get("training")
        changed = {
            "changed": "in a Python program, after what 'before' records",
            "before": training,
        }
        encoders.save_encoder(
            self,
            output,
            sources=self._facts.get("sources", []),
            training=changed if training else {},
            half=half,
        )
        (output / encoders.STATISTICS).unlink(missing_ok=True)
        return output

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload it to the Hugging Face Hub with a model card, and return the address of the repository.

        Args:
            repository: ``owner/name``; created if absent.
            private: whether a new repository is private.

        Raises:
            CheckpointError: without a token or a network, or if the Hub refuses.
            ConfigError: if the Hub does not accept the name.
        """
        from pointdistill.engine.sharing.push import prepare, upload

        encoders.check_repository(repository)
        with temporary_folder() as folder:
            saved = self.save_pretrained(Path(folder, "encoder"))
            prepared = prepare(saved, repository, Path(folder, "upload"))
            return upload(prepared.folder, repository, private=private, stays=False)

    def _is_as_stored(self, source: Path) -> bool:
        """Whether the weights are those at ``source``."""
        if not source.exists():
            return False
        stored = encoders.load_encoder(source)
        return encoders.encoder_checksum(stored) == encoders.encoder_checksum(self)


def load_encoder(path: Path | str | None = None, *, reporter: Reporter = SILENT) -> Encoder:
    """A trained encoder, in evaluation mode on the CPU.

    Args:
        path: a name of `pointdistill weights`, such as ``"asymdsd-s"``; or a run folder, the folder or file of an
            encoder; or a Hub repository as ``owner/name``. Names and repositories are downloaded once. A ``Path``,
            or a string with a separator such as ``"./asymdsd-s"``, is never such a name. None: the last run made
            in this folder, or else the small encoder that comes with the program.
        reporter: receives progress of a download, and which encoder it is.

    Raises:
        CheckpointError: if there is no encoder, its format is unknown, or weights and configuration differ.
    """
    if path is None:
        from pointdistill.engine.pretraining.run_folder import choose_encoder

        stored = choose_encoder(None, reporter=reporter)
    else:
        stored = encoders.locate_encoder(path, reporter=reporter)
    network = encoders.load_encoder(stored)
    with torch.device("meta"):  # its weights are those of ``network``: none are drawn, none copied
        encoder = Encoder(network.config, source=stored)
    encoder.load_state_dict(network.state_dict(), assign=True)
    return encoder.eval().requires_grad_(requires_grad=False)


def embed(
    shapes: Shapes,
    *,
    encoder: Network | Path | str | None = None,
    features: str = "moments",
    points: int | None = None,
    draws: int | None = None,
    turns: int | None = None,
    seed: int = 0,
    up: str = "z",
    batch_size: int | None = None,
    device: str = "auto",
    workers: int = 0,
    reporter: Reporter = SILENT,
) -> Embedding:
    """Features of any shapes, as the ``embed`` command computes them.

    Args:
        shapes: a file, folder, archive or corpus; an array (N, 3), or (B, N, 3); a sequence of these; or a mapping
            from names to arrays, which then have the features of files with these names.
        encoder: from ``load_encoder``, or what that accepts; None for its default.
        features: ``moments``, ``pooled``, ``cls``, ``patches`` or ``points``.
        points: points of each draw; None for the number used in pretraining.
        draws: draws at each angle that are averaged; None chooses by the points of a draw.
        turns: angles about z that the draws are turned to; None: at most 8.
        seed: of the points that are drawn; together with a file's name it decides them.
        up: up axis of arrays, and of files that do not state their own: x, y, z, -x, -y or -z.
        batch_size: shapes per forward pass; None chooses by the device.
        device: ``auto``, ``cpu`` or ``cuda``; an encoder in memory stays where it is.
        workers: processes that read files; with more than 0 a script needs ``if __name__ == "__main__":``.
        reporter: receives progress.

    Returns:
        The features in the order of ``shapes``; what a folder holds is in the order of its names.

    Raises:
        DataError: if a path is missing or holds no shape, or no shape can be used at all.
        ConfigError: for a setting that is not accepted.
        CheckpointError: if there is no encoder.
    """
    from pointdistill.data.sources.paths import given_shapes
    from pointdistill.engine.embedding.embed import find_and_load
    from pointdistill.engine.embedding.memory import embed_in_memory
    from pointdistill.engine.runtime.devices import pick_device

    given = given_shapes(shapes)
    loaded = find_and_load(_loaded(encoder), reporter=reporter)
    network = loaded.network
    with _evaluating(network):
        return embed_in_memory(
            given,
            loaded,
            features=features,
            points=points,
            draws=draws,
            turns=turns,
            seed=seed,
            up=up,
            batch_size=batch_size,
            device=_device_of(network) if isinstance(encoder, Network) else pick_device(device),
            workers=workers,
            reporter=reporter,
        )


def search(
    index: Embedding | str | os.PathLike[str] | None,
    queries: Shapes,
    *,
    count: int = 10,
    encoder: Network | Path | str | None = None,
    up: str | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> SearchReport:
    """The shapes of an embedding that are most similar to each query, as the ``search`` command finds them.

    Args:
        index: from ``embed``, or the path of a file that the ``embed`` command wrote, or of a folder or corpus
            that it embedded here; None for the last one made in this folder.
        queries: files, folders or arrays (N, 3), as for ``embed``.
        count: number of shapes to find for each.
        encoder: the one that made the index; None where the index says it itself.
        up: up axis of queries that do not state their own; None for that of the index.
        device: where to compute the queries' features; an encoder in memory stays where it is.
        reporter: receives which encoder is used.

    Returns:
        A report: ``results``, one for each query that could be read, with its ``path``, its ``neighbours`` (each
        has ``id`` and ``similarity``, the cosine; the most similar comes first), and ``own``, the query's own file
        in the index, which does not count as a neighbour; ``failed``, the others with the reason; and
        ``compared``, the space of the cosine.

    Raises:
        DataError: if there is no index, a query is missing, or none can be used.
        CheckpointError: if the encoder is gone, or is not the one that made the index.
        ConfigError: for a setting that is not accepted.
    """
    from pointdistill.data.sources.paths import given_shapes
    from pointdistill.engine.embedding.embed import LoadedEncoder
    from pointdistill.engine.embedding.index import Index, open_index
    from pointdistill.engine.embedding.memory import Embedding
    from pointdistill.engine.embedding.search import find_index, search_all

    given = given_shapes(queries)
    loaded = _loaded(encoder)
    if isinstance(index, Embedding):
        opened: Index = index.as_index()
        loaded = loaded or LoadedEncoder(index.made_with.encoder, index.made_with.origin)
    else:
        opened = open_index(find_index(None if index is None else Path(index)))
    network = loaded.network if isinstance(loaded, LoadedEncoder) else None
    with _evaluating(network):
        report = search_all(
            given,
            opened,
            count=count,
            encoder=loaded,
            up=up,
            device="auto" if network is not None else device,
            others_only=True,
            reporter=reporter,
        )
    if not report.results:
        path, reason = report.failed[0]
        msg = f"{path}: {reason}"
        raise DataError(msg)
    return report


def _loaded(encoder: Network | Path | str | None) -> Any:
    """An encoder in memory with the place that it comes from; anything else as it is."""
    from pointdistill.engine.embedding.embed import LoadedEncoder

    if not isinstance(encoder, Network):
        return encoder
    return LoadedEncoder(encoder, encoder.source if isinstance(encoder, Encoder) else None)


def _device_of(network: Network) -> torch.device:
    return next(network.parameters()).device


@contextmanager
def _evaluating(network: Network | None) -> Iterator[None]:
    """Compute features of an encoder in evaluation mode, and leave it in the mode that it was in."""
    training = network is not None and network.training
    try:
        yield
    finally:
        if network is not None:
            network.train(training)
