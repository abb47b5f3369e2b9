"""Runs views and step as compiled code where there is a compiler, and as plain PyTorch where there is none."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pointdistill.engine.runtime.devices import out_of_memory

log = logging.getLogger("pointdistill")

COMPILE = ("auto", "on", "off")

Result = TypeVar("Result")

_WHOLE: dict[str, Any] = {"fullgraph": True, "dynamic": False}
"""One graph for a whole part, made for the sizes of a run alone, which do not change."""


def step_compiler(
    setting: str, accelerator: Accelerator, *, sharding: str = "none"
) -> StepCompiler:
    """The compiler of a run; one that compiles nothing if the setting says so or there is no working compiler.

    Args:
        setting: ``auto`` (on a GPU, and for a single process only), ``on`` or ``off``.
        accelerator: the device, and whether there are other processes.
        sharding: FSDP gathers and frees weights block by block, which no whole graph can contain.
    """
    device, alone = accelerator.device, accelerator.num_processes == 1
    # What fails in the first step can be computed again without a compiler, unless other processes wait in the
    # middle of it. So several processes compile only if they are told to.
    wanted = setting == "on" or (setting == "auto" and device.type == "cuda" and alone)
    reason = None
    if wanted:
        reason = "sharding is 'fsdp'" if sharding == "fsdp" else compile_failure(device)
    if reason is not None:
        _say_not_compiled(reason)
    return StepCompiler(active=wanted and reason is None, retries=alone)


def compile_failure(device: torch.device) -> str | None:
    """Why nothing can be compiled for this device, found by compiling a sum; None if it can."""
    try:
        compiled = torch.compile(_is_compiled, fullgraph=True)(torch.zeros(8, device=device))
    except Exception as error:
        # PyTorch has no common class for this: Triton, a C compiler or a header may be missing, or a cache folder
        # not writable. Running out of memory is not among them, with eight numbers.
        return first_line(error)
    return None if bool(compiled) else "torch.compile is switched off"


def _is_compiled(numbers: Tensor) -> Tensor:
    """Whether this runs as compiled code; a kernel has to be built to know."""
    return (numbers + float(torch.compiler.is_compiling())).all()


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).splitlines() or [type(error).__name__]
    # PyTorch names the compiler in the first line, and in the second what it said.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _say_not_compiled(reason: str) -> None:
    log.warning("the step is not compiled, which takes longer: %s", reason)


class StepCompiler:
    """Compiles the parts of a training step, and does without if the first step shows that they do not work."""

    def __init__(self, *, active: bool = False, retries: bool = True) -> None:
        """Prepare to compile.

        Args:
            active: whether to compile at all.
            retries: whether ``first_time`` may compute a second time. Processes that wait for each other may not.
        """
        self.active = active
        self._retries = retries
        self._failed = False

    def module(self, module: nn.Module) -> None:
        """Compile calls of a module, in place: what wraps it, such as DDP, then calls compiled code."""
        if self.active:
            module.compile(**_WHOLE)

    def function(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function, compiled."""
        return torch.compile(function, **_WHOLE) if self.active else function

    def number(self, value: float, device: torch.device) -> float | Tensor:
        """A number that changes from step to step, as an argument of compiled code."""
        # A compiler takes a Python number for a constant, and would compile every step anew. ``torch.full`` fills
        # on the device; ``torch.tensor`` would copy from the host, and wait.
        return torch.full((), value, device=device) if self.active else value

    def first_time(self, compute: Callable[[], Result], undo: Callable[[], None]) -> Result:
        """The result of ``compute``; if it fails, ``undo``, and the result as plain PyTorch computes it.

        A compiler can fail on a whole step although it compiled a sum. Nothing is lost: a step changes weights
        only after all that is compiled has run.
        """
        try:
            return compute()
        except Exception as error:
            if not (self.active and self._retries) or out_of_memory(error):
                raise
            self.active, self._failed = False, True
            undo()
            with self.running():
                result = compute()
            # Only now: what fails without a compiler too is not the compiler's fault.
            _say_not_compiled(first_line(error))
            return result

    def running(self) -> contextlib.AbstractContextManager[object]:
        """Within the block compiled parts run as plain PyTorch if they were found not to work."""
        if self._failed:
            return torch.compiler.set_stance("force_eager")
        return contextlib.nullcontext()
