"""The benchmark measures the same function in every form, and reports what it measured."""

import json

import datasets
import pytest
import torch
from PIL import Image

from seedling_hf.commands import main as seedling_hf
from seedling_hf.replknet.large_kernel_conv import DepthwiseConv2d
from seedling_hf.replknet.pointwise_conv import PointwiseConv2d
from seedling_hf.speed import measurements
from seedling_hf.speed.forms import OURS, PLAIN, PLAIN_CHANNELS_LAST, build_model, check_equal, plain_form

TINY = [
    "benchmark", "--variant", "tiny", "--image_size", "32", "--batch_size", "2", "--repeats", "2", "--device", "cpu"
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "results"
    assert seedling_hf([*TINY, "--output_dir", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "benchmark.json").read_text())


def test_each_layer_and_the_whole_model_have_a_row(results):
    lines = [line["what"] for line in results["rows"]]
    assert sum("depthwise" in line for line in lines) == 2 * len(measurements.layer_shapes("tiny", 32))
    assert lines[-2:] == ["tiny, training step, 32 px, batch 2", "tiny, inference, 32 px, batch 2"]


def test_a_ratio_is_the_quotient_of_the_medians(results):
    for line in results["rows"]:
        medians = line["milliseconds_median"]
        assert line["times_ours"] == pytest.approx({k: v / medians[OURS] for k, v in medians.items()})
        assert all(line["milliseconds_min"][name] <= medians[name] for name in medians)


def test_the_matrix_products_are_measured_in_the_same_run(results):
    (training,) = [line for line in results["rows"] if "training" in line["what"]]
    assert 0 < training["milliseconds_median"][measurements.PRODUCTS] < training["milliseconds_median"][OURS]


def test_inference_in_bfloat16_is_compared_with_the_other_runtimes_in_what_they_can(tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    flags = ["--parts", "inference", "--dtype", "bfloat16"]
    assert seedling_hf([*TINY, *flags, "--output_dir", str(tmp_path)]) == 0
    (line,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    has_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert {*line["milliseconds_median"]} == {
        OURS, PLAIN, PLAIN_CHANNELS_LAST, "ONNX Runtime, float32",
        "OpenVINO" if has_bfloat16 else "OpenVINO, float32",
    }  # fmt: skip


def test_the_peak_memory_of_each_form_is_reported(results):
    assert results["memory"]["megabytes"].keys() == {OURS, PLAIN}
    assert all(megabytes > 50 for megabytes in results["memory"]["megabytes"].values())  # torch alone takes more


def test_the_table_has_a_line_for_each_row(folder, results):
    table = (folder / "benchmark.md").read_text()
    for line in results["rows"]:
        assert f"| {line['what']} | {line['milliseconds_median'][OURS]:.1f} (1.00×) |" in table


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_plain_form_has_our_loss_and_gradients_without_our_layers(memory_format):
    model = build_model("tiny", "cpu", 0).double().train()
    plain = plain_form(model, memory_format)
    assert not any(isinstance(m, (DepthwiseConv2d, PointwiseConv2d)) for m in plain.modules())
    x, labels = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 1, 0])
    for form in (model, plain):
        form(x, labels=labels).loss.backward()
    ours, theirs = dict(model.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, p in ours.items():
        # 1e-8: BatchNorm on few pixels magnifies the last bits of float64.
        torch.testing.assert_close(theirs[name].grad, p.grad, rtol=1e-8, atol=1e-8, msg=name)


def test_the_plain_form_runs_in_the_requested_layout():
    layouts = []
    plain = plain_form(build_model("tiny", "cpu", 0).eval(), torch.contiguous_format)
    for module in plain.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda module, inputs: layouts.append(inputs[0].is_contiguous()))
    plain(torch.randn(2, 3, 64, 64))
    assert layouts
    assert all(layouts)


def test_a_form_that_computes_something_else_is_refused():
    with pytest.raises(RuntimeError, match="expected the loss to be equal in every form, found ours to differ by"):
        check_equal({OURS: torch.ones(1), PLAIN: torch.full((1,), 1.1)}, "the loss")


def test_growth_is_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "GROWTH", {"batch": [2, 4], "resolution": [32, 64], "kernel": [3, 13]})
    assert seedling_hf([*TINY, "--parts", "growth", "--output_dir", str(tmp_path)]) == 0
    growth = json.loads((tmp_path / "benchmark.json").read_text())["growth"]
    assert {axis: [line["value"] for line in lines] for axis, lines in growth.items()} == measurements.GROWTH
    assert Image.open(tmp_path / "growth.png").format == "PNG"


def test_loading_is_compared_with_torchvision_and_timm_from_files_and_from_the_cache(tmp_path, images, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    flags = ["--parts", "loading", "--train_dir", str(images), "--batch_size", "5"]
    assert seedling_hf([*TINY, *flags, "--output_dir", str(tmp_path)]) == 0
    (line,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    # 48 images, of which 45 fill batches of 5.
    assert line["what"] == "loading 45 images, 32 px, cached at 48 px"
    assert [*line["milliseconds_median"]] == [OURS, "ours, cached", "torchvision", "timm"]
    assert all(rate < 1e5 for rate in line["images_per_second"].values())  # nothing was skipped
    assert list((tmp_path / "cache").rglob("*.arrow"))


def test_loading_without_images_is_refused(tmp_path, capsys):
    assert seedling_hf([*TINY, "--parts", "loading", "--output_dir", str(tmp_path)]) == 2
    assert "expected --train_dir with --parts loading, found none" in capsys.readouterr().err


def test_an_unknown_part_is_refused(tmp_path, capsys):
    from seedling_hf.commands import run
    from seedling_hf.commands.benchmark import main

    assert run(main, [*TINY[1:], "--parts", "layers,lunch", "--output_dir", str(tmp_path)]) == 2
    assert (
        "expected --parts of layers, training, inference, profile, memory, growth, loading, found lunch"
        in capsys.readouterr().err
    )
