"""Views of a run's batches by compiled code and recorded kernels, where there are such."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining.execution import (
    Recorder,
    Recording,
    StepCompiler,
    first_line,
    tensors_in,
)
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.pretraining.step import RECORDED_FROM, views_of
from pointdistill.engine.runtime.devices import out_of_memory
from pointdistill.model.distillation import Views
from pointdistill.model.random import stream_number

log = logging.getLogger("pointdistill")


class ViewMaker:
    """Makes the views of batches, on a GPU by compiled code, whose kernels can be recorded.

    Recorded views are in the same place for every batch, so a batch's must have been read when the next are made.
    """

    def __init__(
        self, config: PretrainConfig, device: torch.device, compiler: StepCompiler
    ) -> None:
        """Prepare to make the views of a configuration's batches on this device."""
        self._plain = partial(views_of, config=config)
        self._compiled: Callable[..., Views] | None = None
        # On a CPU views are made by NumPy, which a compiler would replace by slower code.
        if compiler.active and device.type == "cuda":
            # A constant, although a compiler cannot see it.
            torch._dynamo.assume_constant_result(stream_number)
            self._compiled = compiler.function(self._plain)
        self._size: torch.Size | None = None
        self._recorder = compiler.recorder
        self._recording: Recording | None = None
        self._until_recorded = RECORDED_FROM

    def __call__(self, batch: Batch) -> Views:
        """The views and masks of a batch."""
        # Compiled and recorded for the first batch's size only. Where shapes differ in size so do batches, and
        # kernels for each of them would take longer to make than they save.
        self._size = self._size or batch.points.shape
        shapes = (batch.points, batch.counts, batch.index)
        prepared = self._compiled is not None or self._recorder is not None
        if not prepared or batch.points.shape != self._size:
            return self._plain(*shapes, batch.epoch)
        epoch = torch.full((), batch.epoch, device=batch.index.device)
        views = self._replayed((*shapes, epoch))
        return self._made((*shapes, epoch)) if views is None else views

    def _made(self, inputs: tuple[Tensor, ...]) -> Views:
        """The views of a batch's points, counts, indices and epoch, compiled if that works."""
        if self._compiled is not None:
            try:
                return self._compiled(*inputs)
            except Exception as error:
                if out_of_memory(error):
                    raise
                self._compiled = None
                log.warning("views are not compiled, which takes longer: %s", first_line(error))
        return self._plain(*inputs)

    def _replayed(self, inputs: tuple[Tensor, ...]) -> Views | None:
        """The views by their recorded kernels; None if they have to be made without."""
        if self._recorder is None:
            return None
        if self._until_recorded:
            self._until_recorded -= 1
            return None
        try:
            if self._recording is None:
                self._recording = self._recorded(inputs, self._recorder)
        except Exception as error:
            # Running out of memory is a reason, too: a recording keeps for itself all that its kernels need.
            self._recorder = None
            log.warning(
                "the views' kernels are launched one by one, which takes longer: %s",
                first_line(error),
            )
            return None
        views: Views = self._recording(inputs)
        return views

    def _recorded(self, inputs: tuple[Tensor, ...], recorder: Recorder) -> Recording:
        """The recording of views.

        Raises:
            ValueError: if it makes other views than these of the same batch.
        """
        expected = recorder.warm(lambda: self._made(inputs))
        recording = Recording(self._made, inputs, recorder)
        pairs = zip(tensors_in(recording(inputs)), tensors_in(expected), strict=True)
        if not all(torch.equal(found, wanted) for found, wanted in pairs):
            msg = "recorded, they make other views"
            raise ValueError(msg)
        return recording
