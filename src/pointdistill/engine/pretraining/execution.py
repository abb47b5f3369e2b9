"""How a step is executed: on one process or several (DDP, FSDP), compiled or as plain PyTorch.

On a GPU the kernels of a compiled step can be recorded once and then launched together, as a CUDA graph.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pointdistill.engine.pretraining.checkpoints import TrainState
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.runtime.devices import out_of_memory
from pointdistill.engine.runtime.optimizer import build_optimizer, named_moments, restore_moments
from pointdistill.model.distillation import Views
from pointdistill.model.heads import PredictorBlock
from pointdistill.model.random import stream_number
from pointdistill.model.transformer import Block

RECORDED_FROM = 3
"""Calls in a process before one is recorded: compilers and libraries prepare themselves in the first ones."""


def prepare_student(state: TrainState, accelerator: Accelerator, sharding: str) -> nn.Module:
    """The state's student, ready to be called on every process; with ``fsdp`` the state itself is sharded.

    The state must be identical on all processes, and already on its device.
    """
    student, processes = state.student, accelerator.num_processes
    student.keep_less(state.config.checkpoint_patch_embedding.applies_on(accelerator.device.type))
    student.packs_passes = accelerator.device.type == "cuda"
    if sharding == "fsdp":
        _shard(state, accelerator)
        return student
    if processes == 1:
        return student
    # With ``gradient_as_bucket_view`` gradients live in the buckets that DDP sends, which saves one copy of them.
    # Every step uses every parameter of the student, so DDP is not told to search for unused ones, a traversal of
    # the graph after each forward pass. The teacher has no gradients: each process updates its own copy from the
    # same averaged student, and the copies stay equal.
    return DistributedDataParallel(
        student,
        device_ids=[accelerator.device] if accelerator.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def _shard(state: TrainState, accelerator: Accelerator) -> None:
    """Leave each process its shard of student, teacher and moments."""
    # These imports take a second, which only a run with FSDP should pay.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # Taken before sharding, while they can still be looked up by the parameters they belong to.
    moments = named_moments(state.student, state.optimizer)
    for root in (state.student, state.teacher):
        # A transformer block at a time: only one block's whole parameters are in memory at any moment.
        for part in root.modules():
            if isinstance(part, Block | PredictorBlock):
                fully_shard(part, mesh=mesh)
        # By default FSDP keeps the root's own parameters whole after the forward pass, for the backward pass to
        # use. The teacher has no backward pass, and its moving average reads and writes shards between steps.
        fully_shard(root, mesh=mesh, reshard_after_forward=True)
    config = state.config
    # FSDP has replaced the parameters by sharded ones, and the old optimiser still refers to those from before.
    state.optimizer = build_optimizer(
        state.student,
        learning_rate=config.schedule.peak_learning_rate,
        weight_decay=config.weight_decay,
    )
    # Moments are sharded along the first axis, as FSDP shards the parameters. AdamW's step counts are scalars, of
    # which every process keeps its own.
    sharded = {
        name: value if value.ndim == 0 else distribute_tensor(value, mesh, [Shard(0)])
        for name, value in moments.items()
    }
    restore_moments(state.student, state.optimizer, sharded)


log = logging.getLogger("pointdistill")

COMPILE = ("auto", "on", "off")

Result = TypeVar("Result")

_WHOLE: dict[str, Any] = {"fullgraph": True, "dynamic": False}
"""One graph for a whole part, made for the sizes of a run alone, which do not change."""


def _options() -> dict[str, Any]:
    """How Inductor is to fuse the operations of a module."""
    from torch._inductor import config

    # At most so many operations are computed again by each of their readers. The gradients of a norm and the GELU
    # after it have more than PyTorch's limit of 30, so they would be split between the two, and be written in
    # float32. Only for modules: the long chains of integers that views are drawn by would be multiplied.
    limit = "realize_opcount_threshold"
    if "backend" in _WHOLE or not hasattr(config, limit):
        return {}
    return {"options": {limit: 48}}


def step_compiler(
    setting: str, accelerator: Accelerator, *, sharding: str = "none"
) -> StepCompiler:
    """The compiler of a run; one that compiles nothing if the setting says so or there is no working compiler.

    Whatever this process compiled before is compiled again when it is called next.

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
    if wanted and sharding == "fsdp":
        reason = "sharding is 'fsdp'"
    elif wanted:
        # What earlier runs of this process compiled would count against Dynamo's limit, past which it gives up.
        torch.compiler.reset()
        reason = compile_failure(device)
    if reason is not None:
        _say_not_compiled(reason)
    active = wanted and reason is None
    # DDP's messages cannot be recorded as the step's own kernels are.
    records = active and alone and setting == "on" and device.type == "cuda"
    return StepCompiler(
        active=active, retries=alone, recorder=CudaRecorder(device) if records else None
    )


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

    def __init__(
        self, *, active: bool = False, retries: bool = True, recorder: Recorder | None = None
    ) -> None:
        """Prepare to compile.

        Args:
            active: whether to compile at all.
            retries: whether ``first_time`` may compute a second time. Processes that wait for each other may not.
            recorder: records the kernels of a whole step; None to launch them one by one.
        """
        self.active = active
        self.recorder = recorder
        self._retries = retries
        self._failed = False

    def module(self, module: nn.Module) -> None:
        """Compile calls of a module, in place: what wraps it, such as DDP, then calls compiled code."""
        if self.active:
            module.compile(**_WHOLE, **_options())

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

        A compiler can fail on a whole step although it compiled a sum. Nothing is lost: it fails before any of
        what it compiles has changed anything.
        """
        try:
            with self.running():
                return compute()
        except Exception as error:
            if not (self.active and self._retries) or out_of_memory(error):
                raise
            self.active, self._failed, self.recorder = False, True, None
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


class CompiledOrPlain:
    """A function, compiled; from the first call on in which that fails, as plain PyTorch, and one line says so."""

    # A compiler fails before any of what it compiles has changed anything.

    def __init__(
        self, plain: Callable[..., Any], compiled: Callable[..., Any] | None, what: str
    ) -> None:
        """Prepare to call; ``what`` begins the line: what is not compiled."""
        self._plain = plain
        self._compiled = compiled
        self._what = what

    def __call__(self, *inputs: Any) -> Any:
        """The result for these inputs."""
        if self._compiled is not None:
            try:
                return self._compiled(*inputs)
            except Exception as error:
                if out_of_memory(error):
                    raise
                self._compiled = None
                log.warning(
                    "%s not compiled, which takes longer: %s", self._what, first_line(error)
                )
        return self._plain(*inputs)


class Recorder(Protocol):
    """Records what a function launches, for it to be launched again."""

    def warm(self, function: Callable[[], Result]) -> Result:
        """The result of the function, run as it will be when it is recorded."""
        ...

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """The function's result, whose numbers are not there yet, and what computes them when it is called.

        Every tensor stays where it was, and every Python number what it was, when it was recorded.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        """Prepare to record on this device."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def warm(self, function: Callable[[], Result]) -> Result:
        """Run on the stream on which to record, since libraries and autograd remember a stream."""
        self._stream = self._stream or torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Record one graph; its memory belongs to it until the replay function is dropped.

        Raises:
            Exception: that of the function; else the recording's own.
        """
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        stream = self._stream or torch.cuda.Stream(self._device)
        cause = None
        # ``graph`` alone would stay on its stream if the recording fails. Other threads (of the loader, of the
        # writer of checkpoints) may go on with what a recording forbids.
        on_stream = torch.cuda.stream(stream)
        recording = torch.cuda.graph(
            graph, pool=pool, stream=stream, capture_error_mode="thread_local"
        )
        try:
            with on_stream, recording:
                try:
                    result = function()
                except Exception as error:
                    cause = error
                    raise
        except Exception as error:
            # Up to PyTorch 2.11 the allocator goes on as if it recorded, and never frees what two streams used. If
            # it knows that the recording has ended, it says so.
            with contextlib.suppress(RuntimeError, AttributeError, TypeError):
                torch._C._cuda_endAllocateToPool(stream.device_index, pool)
                torch._C._cuda_releasePool(stream.device_index, pool)
            raise (cause or error) from None
        return result, graph.replay


class Recording:
    """A function of tensors as it was recorded: new inputs are copied to where the recorded kernels read."""

    def __init__(
        self, function: Callable[[Any], Result], inputs: object, recorder: Recorder
    ) -> None:
        """Record ``function(inputs)``; it is not computed."""
        self._inputs = copy.deepcopy(inputs)
        self._outputs, self._replay = recorder.record(lambda: function(self._inputs))

    def fits(self, inputs: object) -> bool:
        """Whether inputs have the sizes of the recorded ones."""
        return [t.shape for t in tensors_in(inputs)] == [t.shape for t in tensors_in(self._inputs)]

    def __call__(self, inputs: object) -> Any:
        """The outputs for other inputs of the same sizes; the next call overwrites them."""
        for ours, theirs in zip(tensors_in(self._inputs), tensors_in(inputs), strict=True):
            ours.copy_(theirs)
        self._replay()
        return self._outputs


class Replay:
    """Calls of a function by its recorded kernels, which are recorded in one of the first calls."""

    def __init__(self, recorder: Recorder | None, whose: str) -> None:
        """Prepare to record.

        Args:
            recorder: records the kernels; None to record nothing.
            whose: kernels they are, for the line that says that they cannot be recorded.
        """
        self._recorder = recorder
        self._whose = whose
        self._recording: Recording | None = None
        self._until_recorded = RECORDED_FROM

    def __call__(
        self,
        inputs: Callable[[], object],
        record: Callable[[Any, Recorder], Recording],
        undo: Callable[[], None] = lambda: None,
    ) -> Any:
        """The outputs, which the next call overwrites; None if the function has to be called without a recording.

        Args:
            inputs: makes the inputs, if the kernels are recorded or about to be.
            record: the recording of a function with such inputs, by a recorder.
            undo: what a failed recording left behind.
        """
        if self._recorder is None:
            return None
        if self._until_recorded:
            self._until_recorded -= 1
            return None
        given = inputs()
        if self._recording is None:
            try:
                self._recording = record(given, self._recorder)
            except Exception as error:
                # Running out of memory is a reason, too: a recording keeps for itself all that its kernels need.
                self._recorder = None
                undo()
                log.warning(
                    "the %s kernels are launched one by one, which takes longer: %s",
                    self._whose,
                    first_line(error),
                )
                return None
        return self._recording(given) if self._recording.fits(given) else None


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors of records, tuples, lists and dictionaries within each other, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif is_dataclass(value):
        for one in fields(value):
            yield from tensors_in(getattr(value, one.name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from tensors_in(part)


class ViewMaker:
    """Makes the views of batches, on a GPU by compiled code, whose kernels can be recorded.

    Recorded views are in the same place for every batch, so a batch's must have been read when the next are made.
    """

    def __init__(
        self, plain: Callable[..., Views], device: torch.device, compiler: StepCompiler
    ) -> None:
        """Prepare to make views on this device.

        Args:
            plain: makes the views of a batch's points, counts, indices and epoch.
            device: of the batches.
            compiler: the step's.
        """
        compiled = None
        # On a CPU views are made by NumPy, which a compiler would replace by slower code.
        if compiler.active and device.type == "cuda":
            # A constant, although a compiler cannot see it.
            torch._dynamo.assume_constant_result(stream_number)
            compiled = compiler.function(plain)
        self._plain = plain
        self._make = CompiledOrPlain(plain, compiled, "views are")
        self._size: torch.Size | None = None
        self._replay = Replay(compiler.recorder, "views'")
        self._prepared = compiled is not None or compiler.recorder is not None

    def __call__(self, batch: Batch) -> Views:
        """The views and masks of a batch."""
        # Compiled and recorded for the first batch's size only. Where shapes differ in size so do batches, and
        # kernels for each of them would take longer to make than they save.
        self._size = self._size or batch.points.shape
        shapes = (batch.points, batch.counts, batch.index)
        if not self._prepared or batch.points.shape != self._size:
            return self._plain(*shapes, batch.epoch)
        inputs = (*shapes, torch.full((), batch.epoch, device=batch.index.device))
        views: Views | None = self._replay(lambda: inputs, self._recorded)
        return self._made(inputs) if views is None else views

    def _made(self, inputs: tuple[Tensor, ...]) -> Views:
        """The views of a batch's points, counts, indices and epoch."""
        views: Views = self._make(*inputs)
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
