"""What a training step would launch and move on a GPU, counted on a machine without one.

The production step and views run on fake CUDA tensors, which have shapes but no numbers. What runs as plain
PyTorch is counted operation by operation, each with the kernels that it is known to launch. What is compiled is
handed to Inductor as far as its scheduler, and counted by what that would launch: its fused kernels, and library
calls. Bytes are those of all inputs and outputs. The peak is the largest of what is alive while plain operations
run, and of what is alive when a compiled part begins plus what Inductor's own estimate says that the part needs.

Nothing here was measured. Needs g++, and takes minutes.

Run: ``python benchmarks/count_kernels.py [--size small] [--batch 128] [--compile on]``
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import math
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from pointdistill.engine.config.config import PretrainConfig

GIB = 2**30
PRELOADED = "POINTDISTILL_FAKE_GPU"

# A device guard and CUDA hooks that do nothing: autograd asks for streams, and autocast whether there is a GPU.
FAKE_DEVICE = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
struct Guard final : public impl::DeviceGuardImplInterface {
  Device only() const { return Device(DeviceType::CUDA, 0); }
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return only(); }
  Device getDevice() const override { return only(); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, only()); }
  Stream getDefaultStream(Device d) const override { return getStream(d); }
  Stream exchangeStream(Stream s) const override { return getStream(s.device()); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};
static impl::DeviceGuardImplRegistrar guard(DeviceType::CUDA, new Guard());
namespace at {
struct CUDAHooks : public CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  int getNumGPUs() const override { return 1; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
C10_REGISTER_CLASS_WITH_PRIORITY(CUDAHooksRegistry, CUDAHooks, c10::REGISTRY_PREFERRED, CUDAHooks);
}
"""

HOPPER = SimpleNamespace(
    major=9,
    minor=0,
    multi_processor_count=132,
    name="H200",
    total_memory=141 * GIB,
    max_threads_per_multi_processor=2048,
    warp_size=32,
    regs_per_multiprocessor=65536,
    gcnArchName="",
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=60 * 2**20,
)

# Kernels of one operation on CUDA, where it is not one.
KERNELS = {
    "logsumexp": 8,
    "sort": 6,
    "argsort": 6,
    "topk": 4,
    "cumsum": 2,
    "randperm": 6,
    "index_add": 2,
    "_scaled_dot_product_flash_attention_backward": 3,
    "_scaled_dot_product_efficient_attention_backward": 3,
    "_rms_norm_backward": 2,
    "index_put": 6,
    "index_put_": 6,
    "_index_put_impl_": 6,
    "repeat_interleave": 3,
    "_foreach_norm": 2,
}

FOREACH_ARGUMENTS = 250
"""Tensors that one of Inductor's kernels for lists of tensors takes at most."""

# Operations that launch nothing, although their results are not always views.
FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "empty_permuted",
    "resize_",
    "set_",
}


def build_fake_gpu(folder: Path) -> Path:
    """Compile the fake device into a library."""
    source, library = folder / "fake.cpp", folder / "fake.so"
    source.write_text(FAKE_DEVICE)
    torch_folder = Path(torch.__file__).parent
    include = [f"-I{torch_folder}/include", f"-I{torch_folder}/include/torch/csrc/api/include"]
    link = [f"-L{torch_folder}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_folder}/lib"]
    build = [
        "g++",
        "-shared",
        "-fPIC",
        "-O0",
        "-std=c++20",
        *include,
        str(source),
        "-o",
        str(library),
        *link,
    ]
    subprocess.run(build, check=True)
    return library


def install_fake_gpu() -> None:
    """Make PyTorch believe that there is a GPU, as far as fake tensors need."""
    # PyTorch asks for its hooks while it is imported, so they have to be there before: the program starts itself
    # once more, with the library in front of all others.
    if PRELOADED not in os.environ:
        library = build_fake_gpu(Path(tempfile.mkdtemp()))
        environment = os.environ | {"LD_PRELOAD": str(library), PRELOADED: "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config as inductor_config
    from torch._inductor import scheduler
    from torch._inductor import utils as inductor_utils
    from torch._subclasses import fake_tensor
    from torch.cuda import graphs
    from torch.nn.utils import clip_grad

    fake_tensor.init_gpu_context = lambda _: None
    torch.cuda.is_available = lambda: True
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.is_current_stream_capturing = lambda: False
    graphs._cuda_isCurrentStreamCapturing = lambda: False
    torch.cuda.get_device_properties = lambda *_: HOPPER
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_rng_state = lambda *_: torch.empty(16, dtype=torch.uint8, device="cpu")
    torch.cuda.set_rng_state = lambda *_: None
    torch._C._cuda_getDevice = lambda: 0
    for interface in (CudaInterface, CudaInterface.Worker):
        interface.get_device_properties = staticmethod(lambda *_: HOPPER)
        interface.current_device = staticmethod(lambda: 0)
    CudaInterface.get_compute_capability = staticmethod(lambda *_: 90)
    inductor_utils.is_big_gpu = lambda *_: True
    # Asked for before kernels are planned; none is built here.
    scheduler.has_triton = lambda *_, **__: True
    inductor_config.fx_graph_cache = False
    # Chosen by the types of tensors, which are fake here.
    clip_grad._has_foreach_support = lambda *_: True


@dataclass
class Counted:
    """Kernels and bytes of one part."""

    kernels: int = 0
    library_calls: int = 0
    bytes: float = 0.0


@dataclass
class Ledger:
    """What was counted so far, by part, and the memory that is alive."""

    parts: dict[str, Counted] = field(default_factory=lambda: collections.defaultdict(Counted))
    kinds: dict[tuple[str, str], Counted] = field(
        default_factory=lambda: collections.defaultdict(Counted)
    )
    """The same by part and by what was computed."""

    part: str = "plain"
    counting: bool = False
    paused: bool = False
    """Whether what runs is a compiler, whose tensors are its own and on no device."""

    live: int = 0
    peak: int = 0
    peak_at: str = ""
    seen: dict[int, int] = field(default_factory=dict)

    def reach(self, live: int, where: str) -> None:
        if live > self.peak:
            self.peak, self.peak_at = live, where

    def track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        if key in self.seen:
            return
        self.seen[key] = size
        self.live += size
        if self.counting:
            self.reach(self.live, self.part)

        def freed() -> None:
            if self.seen.pop(key, None) is not None:
                self.live -= size

        weakref.finalize(storage, freed)


LEDGER = Ledger()


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor occupies; expanded axes are read once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else 1
    return size


class CountOperations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts every operation on the fake GPU that launches something."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if LEDGER.paused:
            return result
        outputs = tensors_in(result)
        for tensor in outputs:
            if tensor.device.type == "cuda":
                LEDGER.track(tensor)
        inputs = tensors_in((args, kwargs))
        name = func._schema.name.split("::")[1]
        if not LEDGER.counting or name in FREE or func._schema.name.startswith("prim::"):
            return result
        if not any(t.device.type == "cuda" for t in (*inputs, *outputs)):
            return result
        storages = {t.untyped_storage()._cdata for t in inputs}
        if not func._schema.is_mutable and all(
            t.untyped_storage()._cdata in storages for t in outputs
        ):
            return result  # a view
        moved = sum(stored_bytes(t) for t in {id(t): t for t in (*inputs, *outputs)}.values())
        if name in ("gather", "index", "index_select"):  # reads what it gathers
            moved = 2 * stored_bytes(outputs[0]) + sum(stored_bytes(t) for t in inputs[1:])
        count = KERNELS.get(name, 1)
        if name.startswith(("_foreach", "_fused_adam")):
            count = -(-len(args[0]) // 30) + moved // (4 * 65536 * 320 * 4)
        for found in (LEDGER.parts[LEDGER.part], LEDGER.kinds[LEDGER.part, name]):
            found.kernels += count
            found.bytes += moved
        return result


def tensors_in(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


class CompiledPart:
    """A function or module as ``torch.compile`` would run it: its graphs are counted, and then interpreted."""

    tracing = False
    checkpoints = 0

    def __init__(self, name: str, function: Callable[..., Any], module: nn.Module | None) -> None:
        self.name, self.function, self.module = name, function, module
        self.options: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from torch._functorch.aot_autograd import aot_function
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        from torch._inductor.decomposition import select_decomp_table

        if CompiledPart.tracing:
            return self.function(*args, **kwargs)
        weights = {} if self.module is None else dict(self.module.named_parameters())
        leaves, layout = pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        inputs = [leaves[i] for i in places]
        out_layout: list[Any] = []

        def flat(weights: dict[str, Tensor], inputs: list[Tensor]) -> list[Any]:
            mixed = list(leaves)
            for place, value in zip(places, inputs, strict=True):
                mixed[place] = value
            called_args, called_kwargs = pytree.tree_unflatten(mixed, layout)
            if self.module is None:
                result = self.function(*called_args, **called_kwargs)
            else:
                result = torch.func.functional_call(
                    self.module, weights, called_args, called_kwargs
                )
            out, spec = pytree.tree_flatten(result)
            out_layout[:] = [spec, out]
            return [leaf for leaf in out if isinstance(leaf, Tensor)]

        def partition(graph: Any, inputs: Any, **options: Any) -> Any:
            return min_cut_rematerialization_partition(
                graph, inputs, compiler="inductor", **options
            )

        counting, LEDGER.counting = LEDGER.counting, False
        LEDGER.paused = CompiledPart.tracing = True
        try:
            run = aot_function(
                flat,
                fw_compiler=self.counter("", counting),
                bw_compiler=self.counter(", backward", counting),
                partition_fn=partition,
                decompositions=select_decomp_table(),
                keep_inference_input_mutations=True,
            )
            # Traced with other tensors of the same kind, since graphs never let go of those they were made with.
            run(weights, [like(one) for one in inputs])
        finally:
            LEDGER.paused = CompiledPart.tracing = False
            LEDGER.counting = counting
            leaves.clear()
        outputs = iter(run(weights, inputs))
        spec, out = out_layout
        return pytree.tree_unflatten(
            [next(outputs) if isinstance(x, Tensor) else x for x in out], spec
        )

    def counter(self, suffix: str, counting: bool) -> Callable[..., Any]:
        """A compiler that counts a graph, and then interprets it."""
        from functorch.compile import make_boxed_func
        from torch._inductor import config as inductor_config

        def compile_graph(graph: Any, example: Any) -> Any:
            part, needed = self.name + suffix, 0
            if counting:
                # A backward pass is compiled while the plain one around it is counted.
                paused, LEDGER.paused = LEDGER.paused, True
                with inductor_config.patch(self.options):
                    needed = count_graph(graph, example, part)
                LEDGER.paused = paused
                found = LEDGER.parts[part]
                sys.stderr.write(f"{part}: {found.kernels} kernels, {found.bytes / 1e9:.2f} GB\n")

            def run(*inputs: Any) -> Any:
                if CompiledPart.tracing:
                    return graph.forward(*inputs)
                before = LEDGER.counting, LEDGER.paused
                LEDGER.counting = LEDGER.paused = False
                if counting:
                    LEDGER.reach(LEDGER.live + needed, part)
                try:
                    return graph.forward(*inputs)
                finally:
                    LEDGER.counting, LEDGER.paused = before

            return make_boxed_func(run)

        return compile_graph


def like(tensor: Tensor) -> Tensor:
    """A tensor of the same kind, in another place."""
    empty = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return empty.requires_grad_(tensor.requires_grad)


def count_graph(graph: Any, example: Any, part: str) -> int:
    """Add what Inductor would launch for a graph; returns the bytes that it needs beyond its inputs."""
    from torch._dynamo.utils import detect_fake_mode
    from torch._inductor import ir, memory, scheduler
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    class Quiet:
        def __getattr__(self, _: str) -> Callable[..., None]:
            return lambda *_, **__: None

    mode = detect_fake_mode(example)
    assert mode is not None
    with mode:
        lowered = GraphLowering(graph, shape_env=mode.shape_env)
        handlers = (
            V.set_fake_mode(mode),
            V.set_graph_handler(lowered),
            V.set_real_inputs([]),
            V.set_debug_handler(Quiet()),
        )
        with contextlib.ExitStack() as stack:
            for handler in handlers:
                stack.enter_context(handler)
            lowered.run(*example)
            lowered._update_scheduler()
            plan = lowered.scheduler
            in_registers: set[str] = set()
            for node in plan.nodes:
                # One of several results of a library call is read from a tuple, without a launch.
                if isinstance(node, scheduler.NopKernelSchedulerNode) or isinstance(
                    node.node, ir.MultiOutput
                ):
                    continue
                kind, kernels, library = described(node)
                own, written = own_buffers(plan, node)
                in_registers |= own - written
                moved = node.get_read_write_buffers_sizes()
                moved += 2 * sum(allocated(plan.name_to_buf[name]) for name in written)
                for found in (LEDGER.parts[part], LEDGER.kinds[part, kind]):
                    found.bytes += moved
                    found.kernels += kernels
                    found.library_calls += library
            inputs = memory.OrderedSet(lowered.graph_inputs.keys())
            outputs = memory.OrderedSet(lowered.get_output_names())
            freeable = memory.get_freeable_input_buf(plan.nodes, inputs)
            memory.assign_memory_planning_info_for_scheduler_buffers(plan.nodes, plan.name_to_buf)
            memory.assign_memory_planning_info_for_scheduler_nodes(
                plan.nodes, plan.name_to_fused_node, plan.name_to_buf, freeable
            )
            for name in in_registers:
                sizes = plan.name_to_buf[name].mpi_buffer
                sizes.size_alloc = sizes.size_free = 0
            highest, _ = memory.estimate_peak_memory(plan.nodes, freeable, outputs)
            held = sum(buffer.mpi_buffer.size_free for buffer in freeable.values())
    return max(0, highest - held)


def own_buffers(plan: Any, node: Any) -> tuple[set[str], set[str]]:
    """Buffers that nothing reads but the kernel that computes them, and those of them that it writes all the same.

    A row that is too long for registers is read in several loops. What one of them computed and a later one needs
    is written and read again.
    """
    from torch._inductor import scheduler
    from torch._inductor.codegen import simd_kernel_features
    from torch._inductor.virtualized import V

    parts = node.get_nodes()
    if not all(isinstance(part, scheduler.SchedulerNode) for part in parts):
        return set(), set()
    names = {part.get_name() for part in parts}
    own = {
        buffer.get_name()
        for part in parts
        for buffer in part.get_outputs()
        if plan.can_buffer_be_removed_through_fusion(buffer.get_name(), names)
    }
    # Lists of tensors, and sums along rows beside sums along columns, are kernels that have no such loops.
    if not own or type(node) is not scheduler.FusedSchedulerNode:
        return own, set()
    _, (rows, columns) = max(parts, key=lambda part: int(part.is_reduction())).group
    backend = plan.get_backend(node.get_device()).choose_node_backend(parts[0])
    order = backend.generate_node_schedule(parts, rows, columns)
    features = simd_kernel_features.SIMDKernelFeatures(order, rows, columns)
    if not features.is_reduction() or V.choices.should_use_persistent_reduction(features, False):
        return own, set()
    loops = simd_kernel_features.MemoryEstimator(features, (rows, columns))
    return own, own & set(loops.must_keep_buffers)


def allocated(buffer: Any) -> int:
    """Bytes of a planned buffer."""
    size = math.prod(map(int, buffer.node.get_size()))
    return size * buffer.node.get_dtype().itemsize


def described(node: Any) -> tuple[str, int, int]:
    """What a planned node computes, the kernels that it launches, and how many of them a library has."""
    from torch._inductor import scheduler

    if isinstance(node, scheduler.ExternKernelSchedulerNode):
        operation = getattr(node.node, "op_overload", None)
        if operation is None:
            return type(node.node).__name__, 1, 1
        name = operation._schema.name.split("::")[1]
        return name, KERNELS.get(name, 1), 1
    parts = node.get_nodes()
    names = sorted({str(o.target) for part in parts for o in part.node.get_origins()})
    kernels = 1
    if isinstance(node, scheduler.ForeachKernelSchedulerNode):
        arguments = sum(len(part.read_writes.reads | part.read_writes.writes) for part in parts)
        kernels = -(-arguments // FOREACH_ARGUMENTS)
    sizes = max((tuple(map(int, part.node.get_size())) for part in parts), key=math.prod)
    return (
        f"{sizes} " + " ".join(n.removeprefix("aten.").partition(".")[0] for n in names),
        kernels,
        0,
    )


def checkpointed(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """``checkpoint``; within a graph it marks what is to be computed again, as ``torch.compile`` has it marked."""
    from torch.fx import traceback
    from torch.utils.checkpoint import (
        CheckpointPolicy,
        checkpoint,
        create_selective_checkpoint_contexts,
    )

    if not CompiledPart.tracing:
        return checkpoint(function, *args, **options)

    def again(*_: Any, **__: Any) -> CheckpointPolicy:
        return CheckpointPolicy.PREFER_RECOMPUTE

    def marks() -> Any:
        contexts: Any = create_selective_checkpoint_contexts(again)
        CompiledPart.checkpoints += 1
        contexts[0].ac_graph_id = CompiledPart.checkpoints
        return contexts

    # Without the marks the graph's common subexpressions are merged, and nothing is computed again.
    options |= {"context_fn": marks, "early_stop": False}
    with traceback.preserve_node_meta():
        return checkpoint(function, *args, **options)


@contextlib.contextmanager
def counted_compiler() -> Iterator[None]:
    """Within the block ``torch.compile`` counts instead of compiling."""

    def compile_function(function: Any, **_: Any) -> CompiledPart:
        inner = getattr(function, "func", function)
        return CompiledPart(inner.__name__.removesuffix("_of"), function, None)

    def compile_module(module: nn.Module, **given: Any) -> None:
        part = CompiledPart(type(module).__name__.lower(), module._call_impl, module)
        part.options = given.get("options", {})
        module._compiled_call_impl = part

    torch.compile, nn.Module.compile = compile_function, compile_module
    torch.compiler.is_compiling = lambda: CompiledPart.tracing
    yield


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention that CUDA takes without a mask: flash in bf16, memory-efficient in float32."""
    kind = torch.bfloat16 if torch.is_autocast_enabled("cuda") else query.dtype
    query, key, value = (tensor.to(kind) for tensor in (query, key, value))
    with torch.autocast("cuda", enabled=False):
        if kind == torch.bfloat16:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True
        )[0]


class FusedNorm(torch.autograd.Function):
    """The fused RMSNorm of CUDA, which a build for CPUs does not have: its kernels and its bytes."""

    library = torch.library.Library("counted", "DEF")
    library.define("_rms_norm(Tensor x, Tensor w) -> (Tensor, Tensor)")
    library.define("_rms_norm_backward(Tensor g, Tensor x, Tensor r, Tensor w) -> (Tensor, Tensor)")

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        normed, scale = torch.ops.counted._rms_norm(x, weight)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, scale = ctx.saved_tensors
        return torch.ops.counted._rms_norm_backward(gradient, x, scale, weight)


torch.library.register_fake(
    "counted::_rms_norm",
    lambda x, w: (torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)),  # noqa: ARG005
    lib=FusedNorm.library,
)
torch.library.register_fake(
    "counted::_rms_norm_backward",
    lambda g, x, r, w: (torch.empty_like(x), torch.empty_like(w)),  # noqa: ARG005
    lib=FusedNorm.library,
)


def count(
    config: PretrainConfig, *, compiled: bool, points: int, recompute: bool, kinds: int
) -> None:
    """Count a step that is not the first, since moments exist from the second on; print the table."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from pointdistill.engine.pretraining import step as steps
    from pointdistill.engine.pretraining.checkpoints import TrainState
    from pointdistill.engine.pretraining.execution import StepCompiler, ViewMaker
    from pointdistill.engine.pretraining.loader import Batch
    from pointdistill.engine.runtime.optimizer import build_optimizer
    from pointdistill.model import distillation, kernels, masking, patches, transformer

    for record in (
        patches.Patches,
        masking.Masks,
        distillation.Views,
        distillation.Losses,
        steps.Temperatures,
    ):
        pytree.register_dataclass(record)
    plain_norm = torch.nn.functional.rms_norm

    def norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
        return (
            plain_norm(x, shape, weight, eps)
            if CompiledPart.tracing
            else FusedNorm.apply(x, weight)
        )

    transformer.functional = SimpleNamespace(
        rms_norm=norm,
        linear=torch.nn.functional.linear,
        gelu=torch.nn.functional.gelu,
        scaled_dot_product_attention=attend,
    )
    transformer.checkpoint = checkpointed
    kernels.triton = kernels.triton or (object() if compiled else None)
    # A generator of a fake device cannot be made; what is drawn has no numbers anyway.
    draw_order, draw_uniform = torch.randperm, torch.rand
    torch.randperm = lambda n, generator=None, device=None: draw_order(n, device=device)  # noqa: ARG005
    torch.rand = lambda *n, generator=None, device=None: draw_uniform(*n, device=device)  # noqa: ARG005
    steps.TrainingStep._generator = lambda _: object()
    device = torch.device("cuda", 0)
    accelerator = SimpleNamespace(
        device=device,
        num_processes=1,
        process_index=0,
        autocast=lambda: torch.autocast("cuda", dtype=torch.bfloat16),
    )
    for name in ("clip_gradients", "guarded_step", "update_average"):
        setattr(steps, name, in_part(getattr(steps, name), name))
    plain_backward = Tensor.backward
    Tensor.backward = in_part(plain_backward, "backward")

    batch = config.batch_size
    compiler = StepCompiler(active=compiled, retries=False)
    with FakeTensorMode(allow_non_fake_inputs=True), CountOperations(), counted_compiler():
        student = on_fake_gpu(
            distillation.Student(config.mode, config.encoder, config.head, config.predictor)
        )
        teacher = on_fake_gpu(distillation.Teacher(config.mode, config.encoder, config.head))
        student.packs_passes = compiled
        student.keep_less(recompute)
        optimizer = build_optimizer(student, learning_rate=5e-4, weight_decay=0.05)
        state = TrainState(config, student, teacher, optimizer)
        take = steps.TrainingStep(state, student, accelerator, compiler)
        make_views = ViewMaker(partial(steps.views_of, config=config), device, compiler)
        shapes = Batch(
            torch.empty(batch, points, 3, device=device),
            torch.empty(batch, dtype=torch.int64, device=device),
            torch.empty(batch, dtype=torch.int64, device=device),
            0,
        )
        rates = config.schedule.at(10, total=1000, steps_per_epoch=100)
        for parameter in student.parameters():
            optimizer.state[parameter] = {
                "step": torch.empty((), device=device),
                "exp_avg": torch.empty_like(parameter),
                "exp_avg_sq": torch.empty_like(parameter),
            }
        LEDGER.counting = True
        views = in_part(make_views, "views, plain")(shapes)
        in_part(take, "step, plain")(shapes, views, rates)
    kind = "compiled" if compiled else "plain"
    report(f"{config.name}, {config.encoder.depth} blocks, batch {batch}, {kind}", kinds)


def in_part(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, with everything in it counted as a part of this name."""

    def named(*args: Any, **kwargs: Any) -> Any:
        before, LEDGER.part = LEDGER.part, name
        try:
            return function(*args, **kwargs)
        finally:
            LEDGER.part = before

    return named


def on_fake_gpu(module: Any) -> Any:
    """The module, with fake weights on the fake GPU."""
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                fake = torch.empty(value.shape, device="cuda:0")
                part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, device="cuda:0", dtype=value.dtype)
    return module


def report(title: str, kinds: int) -> None:
    lines = [
        f"{title}, torch {torch.__version__}",
        f"{'part':24} {'kernels':>8} {'library':>8} {'GB':>8}",
    ]
    total = Counted()
    for name, part in LEDGER.parts.items():
        lines.append(f"{name:24} {part.kernels:8} {part.library_calls:8} {part.bytes / 1e9:8.2f}")
        total.kernels += part.kernels
        total.library_calls += part.library_calls
        total.bytes += part.bytes
    lines.append(f"{'total':24} {total.kernels:8} {total.library_calls:8} {total.bytes / 1e9:8.2f}")
    largest = sorted(LEDGER.kinds.items(), key=lambda kind: (-kind[1].kernels, -kind[1].bytes))
    for (part, name), found in largest[:kinds]:
        lines.append(
            f"{part:24} {found.kernels:8} {found.library_calls:8} {found.bytes / 1e9:8.2f}  {name[:160]}"
        )
    lines.append(f"peak {LEDGER.peak / GIB:.2f} GiB, in {LEDGER.peak_at}")
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """Parse, install, count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--points", type=int, default=16384)
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument(
        "--recompute", action="store_true", help="recompute what a GPU does by default"
    )
    parser.add_argument(
        "--depth", type=int, default=0, help="blocks of the encoder, if not the size's"
    )
    parser.add_argument("--predictor-depth", type=int, default=0, help="the same of the predictor")
    parser.add_argument(
        "--kinds",
        type=int,
        default=0,
        help="also list so many kinds of kernels, the most frequent first",
    )
    given = parser.parse_args()
    install_fake_gpu()

    from pointdistill.engine.config.recipes import recipe

    # Counts grow with each block by the same number, so two small depths give those of any other in less time.
    config = replace(recipe(given.size), batch_size=given.batch)
    if given.depth:
        config = replace(config, encoder=replace(config.encoder, depth=given.depth))
    if given.predictor_depth and config.predictor is not None:
        predictor = replace(config.predictor, depth=given.predictor_depth)
        config = replace(config, predictor=predictor)
    count(
        config,
        compiled=given.compile == "on",
        points=given.points,
        recompute=given.recompute,
        kinds=given.kinds,
    )


if __name__ == "__main__":
    main()
