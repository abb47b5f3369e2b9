"""How a run is executed: choices that change its numbers by no more than rounding."""

from __future__ import annotations

from dataclasses import dataclass

from pointdistill.engine.devices import DEVICES, PRECISIONS
from pointdistill.errors import ConfigError

SHARDINGS = ("none", "fsdp")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a run is executed. ``device``, ``precision`` and ``sharding`` decide how its numbers are rounded; the
    others change no bit of them.

    Raises:
        ConfigError: for a value that is not accepted.
    """

    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    precision: str = "auto"
    """``auto``, ``no`` (float32) or ``bf16``. ``auto`` is the precision that a resumed run was begun in; for a new
    run, and on a CPU for one begun on a GPU, bf16 on a GPU and float32 on a CPU."""

    sharding: str = "none"
    """``none``: every process holds the whole model (DDP). ``fsdp``: they hold a part each."""

    save_every: int = 500
    """Steps that a kill may cost at the most. Checkpoints are begun a tenth earlier, so that they are on the disk
    by then without training having waited."""

    save_minutes: float = 10.0
    """Minutes after which a checkpoint is due whatever the steps."""

    keep: int = 2
    """Checkpoints kept, the newest; with 2 there is one before the last in case the last is damaged."""

    log_every: int = 10
    """Steps between rows of ``metrics.jsonl``; the first and the last are always written."""

    track: tuple[str, ...] = ()
    """Accelerate's trackers that are told every row, by name: ``tensorboard``, ``wandb``, …"""

    probe: str | None = None
    """Labelled set on which nearest neighbours of the teacher's features are judged: ``builtin``, a corpus, or the
    archive of a benchmark; None for none."""

    probe_every: int = 5
    """Epochs between probes; the run's last step is always probed."""

    stop_at: int | None = None
    """Save and return after this step, as if interrupted."""

    @property
    def steps_between_checkpoints(self) -> int:
        """After how many steps the next checkpoint is begun."""
        return self.save_every - self.save_every // 10

    def __post_init__(self) -> None:
        for name, accepted in (
            ("device", DEVICES),
            ("precision", PRECISIONS),
            ("sharding", SHARDINGS),
        ):
            if getattr(self, name) not in accepted:
                msg = f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}"
                raise ConfigError(msg)
        for name in ("save_every", "keep", "log_every", "probe_every"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ConfigError(msg)
        if not self.save_minutes > 0.0:
            msg = f"save_minutes must be positive, got {self.save_minutes}"
            raise ConfigError(msg)
