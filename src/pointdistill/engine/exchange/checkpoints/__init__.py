"""Checkpoints that other programs wrote with ``torch.save``, read as data: nothing in them is run."""

from __future__ import annotations

from pointdistill.data.pickles import Placeholder
from pointdistill.engine.exchange.checkpoints.limits import LIMITS, Limits
from pointdistill.engine.exchange.checkpoints.tensor_records import TensorRecord
from pointdistill.engine.exchange.checkpoints.torch_file import Checkpoint, open_checkpoint

__all__ = ["LIMITS", "Checkpoint", "Limits", "Placeholder", "TensorRecord", "open_checkpoint"]
