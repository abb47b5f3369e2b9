"""Compiled code: no graph breaks, the same losses, and what happens where it cannot be had."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pointdistill.engine.config.config import PretrainConfig, Recompute
from pointdistill.engine.pretraining import execution
from pointdistill.engine.pretraining.checkpoints import new_state
from pointdistill.engine.pretraining.execution import (
    RECORDED_FROM,
    Recorder,
    Recording,
    Replay,
    StepCompiler,
    ViewMaker,
    compile_failure,
    prepare_student,
    step_compiler,
    tensors_in,
)
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.pretraining.step import TrainingStep, make_views, views_of
from pointdistill.engine.runtime.devices import build_accelerator
from pointdistill.model import patches, selection
from pointdistill.model import views as views_module
from pointdistill.model.config import Mode
from pointdistill.model.distillation import Views
from pointdistill.model.transformer import Block
from tests.engine.conftest import micro_config

CPU = torch.device("cpu")

# PyTorch's own, while it looks at what a graph is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def captured_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are captured and run as they are: building kernels on a CPU takes minutes."""
    monkeypatch.setitem(execution._WHOLE, "backend", "eager")
    yield
    torch._dynamo.reset()


def config_of(mode: Mode, drop_path: float) -> PretrainConfig:
    config = micro_config(mode)
    return replace(config, encoder=replace(config.encoder, drop_path=drop_path))


def with_rising_temperatures(config: PretrainConfig) -> PretrainConfig:
    """Another temperature in every step, as in the first epochs of the paper's runs."""
    rising = replace(config.schedule, final_cls_temperature=0.06, temperature_epochs=10.0)
    return replace(config, schedule=rising)


def batch_of(config: PretrainConfig, points: int = 128) -> Batch:
    shapes = config.batch_size
    clouds = np.random.default_rng(0).normal(size=(shapes, points, 3)).astype(np.float32)
    return Batch(torch.from_numpy(clouds), torch.full((shapes,), points), torch.arange(shapes), 0)


def losses_of(
    config: PretrainConfig, compiler: StepCompiler | None = None, *, packed: bool = False
) -> list[float]:
    """The losses of three steps."""
    return taken(config, compiler, packed=packed)[0]


def taken(
    config: PretrainConfig,
    compiler: StepCompiler | None = None,
    *,
    packed: bool = False,
    steps: int = 3,
    unreadable: int | None = None,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of steps on views and rates that change, and what student and teacher are afterwards."""
    accelerator = build_accelerator("cpu", "no")
    state = new_state(config)
    student = prepare_student(state, accelerator, "none")
    state.student.packs_passes = packed
    step = TrainingStep(state, student, accelerator, compiler)
    losses = []
    for number in range(steps):
        batch = replace(batch_of(config), epoch=number)
        if number == unreadable:
            batch = replace(batch, read_error=OSError("no disk"))
        rates = config.schedule.at(number + 2, total=100, steps_per_epoch=4)
        metrics = step(batch, make_views(batch, config), rates, watch=number % 2 == 0)
        losses.append(metrics.logged["loss"].item())
    branches = (state.student, state.teacher)
    return losses, {
        f"{n}.{name}": value
        for n, b in enumerate(branches)
        for name, value in b.state_dict().items()
    }


@pytest.mark.parametrize(
    ("mode", "drop_path", "packed"),
    [(Mode.DUAL, 0.2, True), (Mode.CLS, 0.05, False), (Mode.MPM, 0.0, False)],
)
def test_a_step_is_whole_graphs_with_the_same_losses(
    mode: Mode, drop_path: float, packed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph break is an error, and so is compiling once more for a step's new rates.

    The packed case also computes again what the patch embedding, the heads and the predictor do not keep.
    """
    config = with_rising_temperatures(config_of(mode, drop_path))
    if packed:
        config = replace(config, checkpoint_patch_embedding=Recompute.ON)
    with torch._dynamo.config.patch(error_on_recompile=True):
        ours = losses_of(config, StepCompiler(active=True, retries=False), packed=packed)
    assert ours == pytest.approx(losses_of(config), rel=1e-5)
    assert our_lines(caplog) == [], "the teacher's average is compiled, too"


def test_recomputed_heads_and_predictor_keep_only_what_their_gelus_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of each hidden layer one tensor, not two; gradients are those of the plain student."""
    kept: list[tuple[int, ...]] = []

    def backward(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        kept.extend(tuple(one.shape) for one in inputs if isinstance(one, torch.Tensor))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        bw_compiler=backward,
        partition_fn=min_cut_rematerialization_partition,
    )
    monkeypatch.setitem(execution._WHOLE, "backend", backend)
    config = micro_config(Mode.MPM)
    assert config.predictor is not None
    config = replace(
        config,
        encoder=replace(config.encoder, depth=1),
        predictor=replace(config.predictor, depth=1),
        head=replace(config.head, hidden=37),
        checkpoint_patch_embedding=Recompute.ON,
    )
    batch = batch_of(config)
    views = make_views(batch, config)
    gradients = []
    for compiled in (False, True):
        state = new_state(config)
        student = prepare_student(state, build_accelerator("cpu", "no"), "none")
        StepCompiler(active=compiled).module(student)
        student(views).patch.logits.square().sum().backward()
        gradients.append({name: one.grad for name, one in student.named_parameters()})
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-4, atol=1e-6, msg=name)
    assert views.masks is not None
    rows = len(views.masks.hidden_index) * views.masks.hidden_index.shape[1]
    for width, layers in ((37, 2), (4 * config.predictor.width, 1)):
        sizes = [size for size in kept if size[-1] == width]
        assert sum(math.prod(size) == rows * width for size in sizes) == layers, (width, kept)


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_logits_are_gone_when_the_students_backward_pass_begins(
    backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of hidden patches and their gradient are the largest tensors of a step."""
    monkeypatch.setitem(execution._WHOLE, "backend", backend)
    config, accelerator = micro_config(), build_accelerator("cpu", "no")
    state = new_state(config)
    student = prepare_student(state, accelerator, "none")
    compiler = StepCompiler(active=backend is not None, retries=False)
    step = TrainingStep(state, student, accelerator, compiler)
    logits: list[weakref.ref[Any]] = []
    gone: list[bool] = []

    def note(_: object, __: object, predictions: Any) -> None:
        logits.append(weakref.ref(predictions.patch.logits.untyped_storage()))

    student.register_forward_hook(note)
    # The last gradient of the plain pass; of the compiled one all come at once.
    first = state.student.encoder.patch_embedding.stage_one[0]
    first.get_parameter("weight").register_hook(lambda _: gone.append(logits[0]() is None))
    batch = batch_of(config)
    step(batch, make_views(batch, config), config.schedule.at(2, total=9, steps_per_epoch=4))
    assert gone == [True]


def place_of(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


class Tape(TorchDispatchMode):
    """Records as a CUDA graph does: every operation with the tensors and numbers that it had, in their places."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a number"
        result = func(*args, **(kwargs or {}))
        if (
            torch.Tag.inplace_view not in func.tags
        ):  # a new shape, which the places kept here do not share
            self.calls.append((func, *pytree.tree_map(place_of, (args, kwargs or {}, result))))
        return result

    def warm(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        with self:
            return function(), self.replay

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            places, values = (pytree.tree_leaves(one) for one in (result, again))
            for place, value in zip(places, values, strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


@pytest.mark.parametrize(
    ("mode", "drop_path"), [(Mode.DUAL, 0.05), (Mode.DUAL, 0.2), (Mode.CLS, 0.2), (Mode.MPM, 0.0)]
)
def test_a_recorded_step_takes_later_steps_with_later_rates(mode: Mode, drop_path: float) -> None:
    """Whatever a step reads from Python instead of its inputs would stay what it was when it was recorded."""
    config, tape = config_of(mode, drop_path), Tape()
    theirs, expected = taken(config, steps=7)
    ours, found = taken(config, StepCompiler(recorder=tape), steps=7)
    assert tape.replays == 1 + 4, "the check, and the steps from the fourth on"
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_recorded_step_takes_later_temperatures() -> None:
    config = with_rising_temperatures(config_of(Mode.DUAL, 0.2))
    theirs, _ = taken(config, steps=6)
    ours, _ = taken(config, StepCompiler(recorder=Tape()), steps=6)
    assert ours == pytest.approx(theirs, rel=1e-4), "the temperature of before moves a loss by 0.02"


def test_a_recorded_step_is_called_off_where_shapes_could_not_be_read() -> None:
    config = config_of(Mode.DUAL, 0.2)
    _, after_five = taken(config, StepCompiler(recorder=Tape()), steps=5)
    _, called_off = taken(config, StepCompiler(recorder=Tape()), steps=7, unreadable=5)
    for name, value in after_five.items():
        assert torch.equal(called_off[name], value), name


def test_inputs_of_another_size_are_not_given_to_recorded_kernels() -> None:
    replay = Replay(Tape(), "step's")

    def doubled(given: torch.Tensor) -> Any:
        return replay(lambda: given, lambda first, by: Recording(lambda x: 2 * x, first, by))

    early = [doubled(torch.ones(2)) for _ in range(RECORDED_FROM)]
    assert early == [None] * RECORDED_FROM
    assert doubled(torch.tensor([3.0, 4.0])).tolist() == [6.0, 8.0]
    assert doubled(torch.ones(1)) is None, "one number would be copied to both places"
    assert doubled(torch.tensor([5.0, 6.0])).tolist() == [10.0, 12.0]


class Wrong(Tape):
    """Computes another norm than it recorded."""

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        result = function()
        return result, lambda: result.norm.mul_(1.1)


class Unable(Tape):
    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [(Unable, "operation not permitted"), (Wrong, "recorded, they compute")],
)
def test_a_step_that_cannot_be_recorded_is_taken_as_before(
    recorder: type[Tape], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same bits: neither the attempt nor the check changed anything."""
    config = config_of(Mode.DUAL, 0.2)
    ours, found = taken(config, StepCompiler(recorder=recorder()), steps=6)
    theirs, expected = taken(config, steps=6)
    assert ours == theirs
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (line,) = our_lines(caplog)
    assert line.startswith("the step's kernels are launched one by one, which takes longer: ")
    assert reason in line


@pytest.mark.parametrize("ends", ["as it should", "with an error of its own"])
def test_a_failed_recording_leaves_stream_and_memory_as_they_were(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own clean-up stops where the end of a recording is an error; the reason is what failed first."""
    done: list[object] = []

    class Stream:
        device_index = 0

    @contextlib.contextmanager
    def on_stream(_: object) -> Iterator[None]:
        done.append("on the stream")
        try:
            yield
        finally:
            done.append("off the stream")

    @contextlib.contextmanager
    def graph(_: object, *, pool: object, **__: object) -> Iterator[None]:
        try:
            yield
        finally:
            if ends == "with an error of its own":
                raise RuntimeError("operation failed due to a previous error during capture")

    def end(device: int, pool: object) -> None:
        if ends == "as it should":
            raise RuntimeError("not currently recording to this pool")
        done.append(("ended", device, pool))

    def release(device: int, pool: object) -> None:
        done.append(("released", device, pool))

    def fails() -> None:
        raise ValueError("cannot copy between CPU and CUDA tensors")

    for name, stand_in in (
        ("CUDAGraph", object),
        ("graph_pool_handle", lambda: "a pool"),
        ("Stream", lambda _: Stream()),
        ("stream", on_stream),
        ("graph", graph),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    with pytest.raises(ValueError, match="cannot copy"):
        execution.CudaRecorder(torch.device("cuda")).record(fails)
    freed = [("ended", 0, "a pool"), ("released", 0, "a pool")]
    assert done == ["on the stream", "off the stream", *(freed if "own" in ends else [])]


@pytest.mark.parametrize("drop_path", [0.05, 0.2])
@pytest.mark.parametrize("mode", list(Mode))
def test_packed_passes_have_the_losses_of_single_ones(mode: Mode, drop_path: float) -> None:
    config = config_of(mode, drop_path)
    ranks: list[int] = []
    forward = Block.forward

    def counted(block: Block, tokens: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
        ranks.append(tokens.dim())
        return forward(block, tokens, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "forward", counted)
        packed = losses_of(config, packed=True)
    assert 2 in ranks, "the tokens of all passes, one after another"
    assert packed == pytest.approx(losses_of(config), rel=1e-6)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of tensor operations alone, as a GPU's are, which can be recorded."""
    for module in (views_module, patches, selection):
        monkeypatch.setattr(module, "in_numpy", lambda _: False)


def made(recorder: Recorder | None, config: PretrainConfig, sizes: list[int]) -> list[list[Any]]:
    """The numbers of all views of batches of these sizes, each of another epoch and with other points."""
    make = ViewMaker(
        partial(views_of, config=config), torch.device("cuda"), StepCompiler(recorder=recorder)
    )
    views = []
    for epoch, points in enumerate(sizes):
        batch = batch_of(config, points)
        batch = replace(
            batch, epoch=epoch, points=batch.points * (1 + epoch), index=batch.index + epoch
        )
        views.append([tensor.tolist() for tensor in tensors_in(make(batch))])
    return views


@pytest.mark.usefixtures("as_on_a_gpu")
def test_recorded_views_are_those_of_every_later_batch() -> None:
    """The same bits; a batch of another size is made without the recording."""
    config, tape, sizes = micro_config(), Tape(), [128, 128, 128, 128, 128, 96, 128]
    assert made(tape, config, sizes) == made(None, config, sizes)
    assert tape.replays == 1 + 3, "the check, and the batches of the first size from the fourth on"


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("recorder", "reason"),
    [(Unable, "operation not permitted"), (Tape, "recorded, they make other views")],
)
def test_views_that_cannot_be_recorded_are_made_as_before(
    recorder: type[Tape],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Tape, "replay", lambda tape: tape.calls[-1][-1].add_(1))
    config, sizes = micro_config(), [128] * 5
    assert made(recorder(), config, sizes) == made(None, config, sizes)
    (line,) = our_lines(caplog)
    assert line.startswith("the views' kernels are launched one by one, which takes longer: ")
    assert reason in line


def test_views_are_one_graph_for_the_first_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config = micro_config()
    calls = []
    function = StepCompiler.function

    def noted(compiler: StepCompiler, inner: Callable[..., Views]) -> Callable[..., Views]:
        compiled = function(compiler, inner)

        def call(points: torch.Tensor, *rest: Any) -> Views:
            calls.append(points.shape[1])
            return compiled(points, *rest)

        return call

    monkeypatch.setattr(StepCompiler, "function", noted)
    make = ViewMaker(
        partial(views_of, config=config), torch.device("cuda"), StepCompiler(active=True)
    )
    for points, epoch in ((128, 0), (128, 7), (96, 0)):
        batch = replace(batch_of(config, points), epoch=epoch)
        ours, theirs = make(batch), make_views(batch, config)
        assert ours.masks is not None
        assert theirs.masks is not None
        assert torch.equal(ours.masks.hidden_index, theirs.masks.hidden_index)
        torch.testing.assert_close(ours.global_views.offsets, theirs.global_views.offsets)
    assert calls == [128, 128]


def test_many_runs_in_one_process_are_all_compiled(caplog: pytest.LogCaptureFixture) -> None:
    """Each compiles the same functions for other shapes."""
    config = config_of(Mode.CLS, 0.0)
    with torch._dynamo.config.patch(recompile_limit=2):
        for batch_size in (2, 3, 4, 5):
            compiler = step_compiler("on", build_accelerator("cpu", "no"))
            losses_of(replace(config, batch_size=batch_size), compiler)
            assert compiler.active
    assert our_lines(caplog) == []


def our_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, without PyTorch's own notes on compiling."""
    return [record.getMessage() for record in caplog.records if record.name == "pointdistill"]


def broken(*_: object) -> Callable[..., Any]:
    raise RuntimeError("no kernel for this\nand much more")


def test_what_cannot_be_compiled_runs_as_it_is_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same bits, since the failed attempt left nothing behind."""
    monkeypatch.setitem(execution._WHOLE, "backend", broken)
    config = config_of(Mode.DUAL, 0.2)
    assert losses_of(config, StepCompiler(active=True)) == losses_of(config)
    (line,) = our_lines(caplog)
    assert line.startswith("the step is not compiled, which takes longer: ")
    assert "no kernel for this" in line


def test_an_average_that_cannot_be_compiled_is_computed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the step stays compiled."""
    compiled = []

    def all_but_lists(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        if any("_foreach" in str(node.target) for node in graph.graph.nodes):
            return broken()
        compiled.append(graph)
        return graph.forward

    monkeypatch.setitem(execution._WHOLE, "backend", all_but_lists)
    config, compiler = micro_config(), StepCompiler(active=True)
    ours, found = taken(config, compiler)
    theirs, expected = taken(config)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert compiler.active
    assert len(compiled) == 3, "teacher, student and objective"
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    (line,) = our_lines(caplog)
    assert line.startswith("the teacher's average is not compiled, which takes longer: ")
    assert "no kernel for this" in line


def test_views_that_cannot_be_compiled_are_made_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(execution._WHOLE, "backend", broken)
    config = micro_config()
    batch = batch_of(config)
    make = ViewMaker(
        partial(views_of, config=config), torch.device("cuda"), StepCompiler(active=True)
    )
    for _ in range(2):
        assert torch.equal(
            make(batch).global_views.centers, make_views(batch, config).global_views.centers
        )
    (line,) = our_lines(caplog)
    assert "no kernel for this" in line


def without_a_c_compiler(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
    def fails(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler\nand much more")

    return fails


def switched_off(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
    return function


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (without_a_c_compiler, "Failed to find C compiler"),
        (switched_off, "torch.compile is switched off"),
    ],
)
def test_without_a_compiler_one_line_says_that_the_step_is_not_compiled(
    compiler: Callable[..., Any],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    assert compile_failure(CPU) == reason
    accelerator: Any = SimpleNamespace(device=CPU, num_processes=1)
    assert not step_compiler("on", accelerator).active
    assert our_lines(caplog) == [f"the step is not compiled, which takes longer: {reason}"]


@pytest.mark.parametrize(
    ("setting", "processes", "active"),
    [("auto", 1, True), ("auto", 2, False), ("on", 2, True), ("off", 1, False)],
)
def test_on_gpus_several_processes_compile_only_if_told_to(
    setting: str,
    processes: int,
    active: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failure would end their run, while a single process goes on without a compiler."""
    monkeypatch.setattr(execution, "compile_failure", lambda _: None)
    gpu = torch.device("cuda")
    accelerator: Any = SimpleNamespace(device=gpu, num_processes=processes)
    assert step_compiler(setting, accelerator).active == active
    assert our_lines(caplog) == []


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_on_a_cpu_nothing_is_compiled_unless_asked_for(
    setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    accelerator: Any = SimpleNamespace(device=CPU, num_processes=1)
    assert not step_compiler(setting, accelerator).active
    assert our_lines(caplog) == []
