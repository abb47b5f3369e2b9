"""Checkpoints that other programs wrote with ``torch.save``, read as data: nothing in them is run."""
