"""A GPU that is not there, for ``count_kernels.py``: PyTorch believes in it as far as fake tensors need.

Fake tensors have shapes but no numbers. Needs g++.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

GIB = 2**30
PRELOADED = "POINTDISTILL_FAKE_GPU"
"""Variable that holds the library's path, in a process that has loaded it before PyTorch."""

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
extern "C" void install_guard() { impl::DeviceGuardImplRegistrar again(DeviceType::CUDA, new Guard()); }
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
        environment = os.environ | {"LD_PRELOAD": str(library), PRELOADED: str(library)}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    del os.environ["LD_PRELOAD"]  # what is started from here on loads no PyTorch for it
    # Only now: a build of PyTorch for GPUs has put its own guard in place while it was imported.
    ctypes.CDLL(os.environ[PRELOADED]).install_guard()
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
    # Asked for before kernels are planned; none is launched here.
    scheduler.has_triton = lambda *_, **__: True
    inductor_config.fx_graph_cache = False
    # Chosen by the types of tensors, which are fake here.
    clip_grad._has_foreach_support = lambda *_: True


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
