"""What compiled graphs launch, move and need, for ``count_kernels.py``, and Inductor's code for them.

A compiled part is handed to Inductor as far as its scheduler, and counted by what that would launch.
"""

from __future__ import annotations

import collections
import contextlib
import math
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

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


HandleGraph = Callable[[Any, Any, str], int]
"""Does something with a graph, given its example inputs and the name of its part; returns the bytes it needs."""


class CompiledPart:
    """A function or module as ``torch.compile`` would run it: its graphs are handled, and then interpreted."""

    tracing = False
    checkpoints = 0

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        module: nn.Module | None,
        handle: HandleGraph,
    ) -> None:
        self.name, self.function, self.module, self.handle = name, function, module, handle
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
                fw_compiler=self.compiler("", counting),
                bw_compiler=self.compiler(", backward", counting),
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

    def compiler(self, suffix: str, counting: bool) -> Callable[..., Any]:
        """A compiler that hands on a graph, and then interprets it."""
        from functorch.compile import make_boxed_func
        from torch._inductor import config as inductor_config

        def compile_graph(graph: Any, example: Any) -> Any:
            part, needed = self.name + suffix, 0
            if counting:
                # A backward pass is compiled while the plain one around it is counted.
                paused, LEDGER.paused = LEDGER.paused, True
                with inductor_config.patch(self.options):
                    needed = self.handle(graph, example, part)
                LEDGER.paused = paused

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
    from torch._inductor import ir, memory, scheduler

    with lowered(graph, example) as lowering:
        lowering._update_scheduler()
        plan = lowering.scheduler
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
        inputs = memory.OrderedSet(lowering.graph_inputs.keys())
        outputs = memory.OrderedSet(lowering.get_output_names())
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
    found = LEDGER.parts[part]
    sys.stderr.write(f"{part}: {found.kernels} kernels, {found.bytes / 1e9:.2f} GB\n")
    return max(0, highest - held)


def code_of(graph: Any, example: Any) -> str:
    """The Python code that Inductor makes of a graph, with the sources of its kernels."""
    from torch._inductor import config as inductor_config

    # One thread: otherwise Inductor would begin to build the kernels in processes of its own.
    with inductor_config.patch(compile_threads=1), lowered(graph, example) as lowering:
        code = lowering.codegen()[0]
    return str(getattr(code, "value", code))


@contextlib.contextmanager
def lowered(graph: Any, example: Any) -> Iterator[Any]:
    """A graph in Inductor's own operations, and within the block all that Inductor asks about it."""
    from torch._dynamo.utils import detect_fake_mode
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    class Quiet:
        def __getattr__(self, _: str) -> Callable[..., None]:
            return lambda *_, **__: None

    mode = detect_fake_mode(example)
    assert mode is not None
    with mode:
        lowering = GraphLowering(graph, shape_env=mode.shape_env)
        handlers = (
            V.set_fake_mode(mode),
            V.set_graph_handler(lowering),
            V.set_real_inputs([]),
            V.set_debug_handler(Quiet()),
        )
        with contextlib.ExitStack() as stack:
            for handler in handlers:
                stack.enter_context(handler)
            lowering.run(*example)
            yield lowering


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
def handled_compiler(handle: HandleGraph) -> Iterator[None]:
    """Within the block ``torch.compile`` hands its graphs on instead of compiling them."""

    def compile_function(function: Any, **_: Any) -> CompiledPart:
        inner = getattr(function, "func", function)
        return CompiledPart(inner.__name__.removesuffix("_of"), function, None, handle)

    def compile_module(module: nn.Module, **given: Any) -> None:
        part = CompiledPart(type(module).__name__.lower(), module._call_impl, module, handle)
        part.options = given.get("options", {})
        module._compiled_call_impl = part

    torch.compile, nn.Module.compile = compile_function, compile_module
    torch.compiler.is_compiling = lambda: CompiledPart.tracing
    yield
