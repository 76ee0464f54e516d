"""The flags of `torch.compile`, and the trial that says what is missing before work starts."""

from types import SimpleNamespace

import pytest
import torch
from torch._inductor import cpp_builder

from seedling_hf.compiling import CompilingArguments, check_compiler
from seedling_hf.errors import InputError

HERE = SimpleNamespace(device=torch.device("cpu"))


def test_a_mode_implies_compiling():
    assert not CompilingArguments().torch_compile
    assert CompilingArguments(torch_compile_mode="default").torch_compile
    assert CompilingArguments(torch_compile=True).torch_compile_mode is None


def test_a_machine_that_compiles_passes(monkeypatch):
    torch._dynamo.reset()
    check_compiler(HERE, "aot_eager")


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        with pytest.raises(InputError, match=r"expected a C\+\+ compiler for torch.compile on a CPU, found none"):
            check_compiler(HERE)
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch._inductor.exc.TritonMissing(None), "expected Triton for torch.compile on a GPU, found none"),
        (
            OSError(28, "No space left on device"),
            "found OSError: .* No space left on device; mend it, or compile nothing",
        ),
    ],
    ids=["Triton", "disk"],
)
def test_whatever_a_compiler_raises_is_one_sentence(error, sentence, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.raises(InputError, match=sentence):
        check_compiler(HERE, "eager")
