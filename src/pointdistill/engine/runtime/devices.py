"""Devices, precision and processes (through Accelerate), threads, signals, and the memory of this process."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, distributed

from pointdistill.data.files import processes as memory
from pointdistill.errors import ConfigError

# Accelerate takes a sixth of the time that torch takes to load, and only a training needs it.
if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("pointdistill")

GIB = memory.GIB
STATUS = Path("/proc/self/status")

Products: TypeAlias = Literal["float32", "tf32"]
"""How a GPU multiplies float32 matrices: exactly, or with factors of 10 bits and several times as fast."""

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "no", "bf16")
NARROW = 128
"""Largest width of an encoder that trains on a single CPU thread."""

# Options of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_PAD_BYTES = 2**26

_TRIAL_SECONDS = 300.0
"""Loading torch from a slow disk takes a minute; a trial that takes longer than this is taken to hang."""

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher such as torchrun tells each process that it starts."""

_NEAR_SECONDS, _FAR_SECONDS = 20.0, 900.0
"""How long to wait for the other processes of this machine, and of a cluster, where no launcher does."""

_BF16_TRIAL = """
import torch
for columns in (3, 128):
    weight = torch.ones(128, columns, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.nn.functional.linear(torch.ones(64, columns), weight).sum()
    loss.backward()
"""


def pick_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is a GPU if there is one.

    Raises:
        ConfigError: for another name, or ``cuda`` without a GPU.
    """
    if name not in DEVICES:
        msg = f"device must be one of {', '.join(DEVICES)}, got {name!r}"
        raise ConfigError(msg, settings=("device",))
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        msg = "device is 'cuda', but torch finds no GPU; see `pointdistill doctor`, or use 'cpu'"
        raise ConfigError(msg, settings=("device",))
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def build_accelerator(
    device: str, precision: str, *, track: Sequence[str] = (), project: Path | None = None
) -> Accelerator:
    """Accelerate for this process, in the requested precision.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``no`` or ``bf16``.
        track: trackers that exist and are installed.
        project: folder for trackers that need one.

    Raises:
        ConfigError: for a device or precision that does not exist or is not available.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision not in PRECISIONS:
        msg = f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}"
        raise ConfigError(msg)
    check_launch_variables()
    on_gpu = pick_device(device).type == "cuda"
    mixed = ("bf16" if on_gpu else "no") if precision == "auto" else precision
    if mixed == "bf16" and not on_gpu:
        _check_bf16_on_cpu()
    _await_other_processes(on_gpu=on_gpu)
    if process_count() == 1:
        # Accelerate keeps the first precision and device of a process; a second run may need others.
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision=mixed,
        log_with=list(track) or None,
        project_dir=None if project is None else str(project),
    )
    _check_launcher(accelerator)
    return accelerator


def launch_variables() -> dict[str, str]:
    """The variables that tell a process it is one of several, as they are set."""
    return {name: os.environ[name] for name in LAUNCH_VARIABLES if os.environ.get(name)}


def check_launch_variables() -> None:
    """Check that the variables of a launcher are all there, or none that matters: some are left in a shell.

    Raises:
        ConfigError: naming those that are set.
    """
    found = launch_variables()
    alone = found.get("WORLD_SIZE", "1") == "1" and found.get("RANK", "0") == "0"
    if alone and "LOCAL_RANK" not in found:
        return
    numbers = [found.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    numeric = all(number.isdecimal() and len(number) < 10 for number in numbers)
    if not (numeric and {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= found.keys()):
        raise _left_over(found, "which are not all that a launcher sets")


def _left_over(found: Mapping[str, str], why: str) -> ConfigError:
    values = " ".join(f"{name}={value}" for name, value in found.items())
    return ConfigError(
        f"the environment has {values}, {why}; if they are left of another program, `unset {' '.join(found)}`, "
        "otherwise start all processes with torchrun or accelerate launch"
    )


def _await_other_processes(*, on_gpu: bool) -> None:
    """Meet the other processes where no launcher watches over them, and not for ever: there may be none.

    Raises:
        ConfigError: if they do not come.
    """
    count = process_count()
    if count == 1 or "TORCHELASTIC_RUN_ID" in os.environ or distributed.is_initialized():
        return
    found = launch_variables()
    # Processes on one machine start together; those of a cluster may wait for each other's machines.
    near = found["MASTER_ADDR"] in ("127.0.0.1", "localhost", "::1", platform.node())
    patience = _NEAR_SECONDS if near else _FAR_SECONDS
    rank = int(found["RANK"])
    msg = "%s says that %d processes train together; waiting at most %.0f seconds for the others"
    log.warning(msg, f"WORLD_SIZE={count}", count, patience)
    place = (found["MASTER_ADDR"], int(found["MASTER_PORT"]))
    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]  # not in its public list
            *place, count, is_master=rank == 0, timeout=timedelta(seconds=patience)
        )
    except (RuntimeError, ValueError, OverflowError) as error:
        why = f"and of {count} processes not all came within {patience:.0f} seconds"
        raise _left_over(found, why) from error
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=count
    )


def _check_launcher(accelerator: Accelerator) -> None:
    """Check that the launcher leaves sharding to us.

    Raises:
        ConfigError: naming the launcher's choice.
    """
    from accelerate.utils import DistributedType

    # Accelerate's own plugins would wrap the student, and know nothing of the teacher.
    plain = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
    if accelerator.distributed_type not in plain:
        chosen = accelerator.distributed_type.value
        msg = (
            f"accelerate was configured for {chosen}; configure it for several GPUs (or use torchrun) instead, "
            "and choose sharding 'fsdp' to split a large model over the processes"
        )
        raise ConfigError(msg, settings=("sharding",))


def _check_bf16_on_cpu() -> None:
    """Check that this CPU can train in bf16, by trying matrix products of the sizes in an encoder's first layers.

    Raises:
        ConfigError: if it cannot.
    """
    # Tried in a process of its own: a virtual machine may announce matrix units that it does not have, and the
    # first product large enough for them then kills the process.
    reason = bf16_failure()
    if reason is None:
        return
    msg = (
        f"precision 'bf16' does not work on this CPU ({reason}); use 'no', or set "
        "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 if this is a virtual machine"
    )
    raise ConfigError(msg, settings=("precision",))


def bf16_failure() -> str | None:
    """Why this CPU cannot train in bf16, found by a trial in another process; None if it can."""
    try:
        trial = subprocess.run(
            # Without -P a random.py in the working folder would be loaded instead of Python's.
            [sys.executable, "-P", "-c", _BF16_TRIAL],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a trial did not end within {_TRIAL_SECONDS:g} s"
    if trial.returncode == 0:
        return None
    if trial.returncode < 0:
        return f"it ends in {signal.Signals(-trial.returncode).name}"
    return trial.stderr.strip().rpartition("\n")[2]


@contextmanager
def threads_for(width: int, device: torch.device) -> Iterator[None]:
    """Set a CPU up for an encoder of this width, for the duration of the block."""
    # The operations of a narrow encoder are too small to share. Seconds per step of the tiny model at batch 32 on
    # two cores, alone and beside a busy process (``benchmarks/threads.py``): one thread 0.261 and 0.286; two that
    # wait passively 0.583 and 0.344; two that spin 0.199 and 0.615. One thread is never far from the best, and
    # leaves a core to the views of the next step.
    before = torch.get_num_threads()
    if device.type == "cpu":
        keep_freed_memory()
        if width <= NARROW:
            torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def gpu_products(products: Products, device: torch.device) -> Iterator[None]:
    """Set how a GPU multiplies float32 matrices, for the duration of the block; a CPU is left as it is."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of returning it to the system; False without glibc.

    The process then keeps its peak memory until it ends. Calling it again has no further effect.
    """
    # A training step on a CPU allocates and frees the same large tensors each time. By default the C library
    # returns each of them to the system, which has to zero the pages again: a good part of a step
    # (``benchmarks/step.py``).
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD_BYTES))
    return all(library.mallopt(option, value) == 1 for option, value in settings)


def is_main_process() -> bool:
    """Whether this is the process that prints and writes; known before Accelerate is set up."""
    return os.environ.get("RANK", "0") == "0"


def _number(name: str, default: int) -> int:
    """A number that a launcher sets.

    Raises:
        ConfigError: if it is none.
    """
    text = os.environ.get(name) or str(default)
    if not (text.isdecimal() and len(text) < 10):
        raise _left_over(launch_variables() | {name: text}, "which is no number of a launcher")
    return int(text)


def process_count() -> int:
    """Number of processes that a launcher started together."""
    return _number("WORLD_SIZE", 1)


def process_rank() -> int:
    """Number of this process among those that a launcher started together."""
    return _number("RANK", 0)


def local_process_count() -> int:
    """Number of these processes that run on this machine; of all, where the launcher does not say."""
    return _number("LOCAL_WORLD_SIZE", process_count())


def process_device(name: str) -> torch.device:
    """The device of this name for this one of the processes on a machine: each has a GPU of its own.

    Raises:
        ConfigError: as for `pick_device`.
    """
    device = pick_device(name)
    if device.type != "cuda" or process_count() == 1:
        return device
    # More processes than GPUs share them: that is slower, and still right.
    return torch.device("cuda", _number("LOCAL_RANK", 0) % torch.cuda.device_count())


@contextmanager
def interruptible(on_signal: Callable[[], None] | None = None) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after Ctrl-C, SIGTERM or a closed terminal.

    A second signal raises KeyboardInterrupt at once.
    Outside the main thread no handler can be set, and the function always returns False.

    Args:
        on_signal: called within the handler of the first signal, so that the user gets an answer at once even if
            the loop checks late.
    """
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        if on_signal is not None:
            on_signal()

    # A closed terminal sends SIGHUP, which Windows does not have.
    signals = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    try:
        before = {number: signal.signal(number, handle) for number in signals}
    except ValueError:
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def memory_gib() -> float:
    """GiB that this process may use: physical memory, or a container's limit."""
    return memory.memory_bytes() / GIB


def resident_gib() -> float | None:
    """GiB of memory that this process uses now; None if the system does not report it."""
    return _from_status("VmRSS")


def peak_resident_gib() -> float | None:
    """Peak memory of this process in GiB; None if the system does not report it."""
    return _from_status("VmHWM")


def _from_status(name: str) -> float | None:
    """A value from Linux's status of this process, in GiB."""
    # Not ``getrusage``, whose peak includes that of the parent process before the child was started.
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(values[0]) * 1024 / GIB if values else None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the GPU or the machine ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def mean_over_processes(accelerator: Accelerator, values: Sequence[Tensor]) -> list[Tensor]:
    """The average of every tensor over all processes, in float32 and of the same shape, by a single all-reduce."""
    if accelerator.num_processes == 1:
        return list(values)
    flat = torch.cat([value.detach().float().reshape(-1) for value in values])
    distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    parts = flat.split([value.numel() for value in values])
    return [part.view(value.shape) for value, part in zip(values, parts, strict=True)]


def gather_rows(accelerator: Accelerator, value: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, differentiably, and the index of this process's first row among them."""
    all_rows: Tensor = _GatherRows.apply(value)  # type: ignore[no-untyped-call]
    return all_rows, accelerator.process_index * len(value)


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward pass sums the gradients that every process's loss has for this process's rows."""

    # ``distributed.all_gather`` has no gradient. Without one, KoLeo would move a shape away from a neighbour on
    # another process, but the neighbour would feel nothing of it.

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.rows = len(value)
        parts = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        first = distributed.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]
