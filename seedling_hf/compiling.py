"""`torch.compile`: its flags, and whether it works on this machine, which is tried before work starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seedling_hf.arguments import ArgumentGroup, option
from seedling_hf.errors import InputError
from seedling_hf.progress import Progress

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

INDUCTOR = "inductor"
# These replay CUDA graphs, whose memory the next run overwrites.
REPLAYING_MODES = ("reduce-overhead", "max-autotune")
REMEDY = "or compile nothing, without --torch_compile and the launcher's --dynamo_backend"


@dataclass(kw_only=True)
class CompilingArguments(ArgumentGroup):
    _argument_group_name = "Compiling"

    torch_compile: bool = option(False, "compile the model by torch.compile, which takes minutes at first")
    torch_compile_mode: str | None = option(
        None, "the mode of torch.compile, which it implies", choices=["default", *REPLAYING_MODES]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.torch_compile = self.torch_compile or self.torch_compile_mode is not None


def check_compiler(accelerator: "Accelerator", backend: str = INDUCTOR) -> None:
    """Compiles and runs one line on the accelerator's device, on each process.

    Raises:
        InputError: if that fails, with what is missing, such as a C++ compiler, its headers or Triton.
    """
    import torch

    device = accelerator.device
    with Progress("trying torch.compile"):
        try:
            if backend == INDUCTOR and device.type == "cpu":  # what is in the compiler's cache needs none
                # Private: it has no public name.
                from torch._inductor.cpp_builder import get_cpp_compiler

                get_cpp_compiler()
            torch.compile(_one_line, backend=backend)(torch.zeros(8, device=device))
        except Exception as error:  # a compiler may raise anything
            raise InputError(f"{_explain(error, device)}, {REMEDY}") from error


def _one_line(x: "torch.Tensor") -> "torch.Tensor":
    return x * 2 + 1


def _explain(error: Exception, device: "torch.device") -> str:
    """What is missing: an error of the compiler has its cause's name in its text."""
    text = f"{type(error).__name__}: {error}"
    if "InvalidCxxCompiler" in text or "No working C++ compiler" in text:
        return (
            f"expected a C++ compiler for torch.compile on a {device.type.upper()}, found none; install one (g++, or "
            "what the environment variable CXX names)"
        )
    if "Triton" in text:
        return (
            "expected Triton for torch.compile on a GPU, found none that works here; install the one of this "
            "version of torch (pip install triton)"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"expected torch.compile to work here, found {lines[0]}; mend it"
