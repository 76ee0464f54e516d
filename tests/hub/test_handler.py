"""The handler for Inference Endpoints, called as the service calls it: from a pushed folder, without the package."""

import ast
import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from importlib import metadata
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_client import Client, Repository, free_port, wait_until
from local_hub import LocalHub, User
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load_file, save_file

import seedling_hf.hub.handler
from seedling_hf.data.formats import SUFFIXES
from seedling_hf.data.images import LARGEST_ASPECT_RATIO, read_image, to_rgb
from seedling_hf.hub.endpoint import ENDPOINT_FILES, MARK, endpoint_files
from seedling_hf.hub.handler import FORMATS, LONGEST, EndpointHandler
from seedling_hf.inference.answers import NOT_SURE, SURE, UNFAMILIAR
from seedling_hf.inference.classifier import Pretrained, list_classes, load_classifier
from seedling_hf.inference.judgement import add_familiarity, choose_certainty, judge

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "tests" / "endpoint_service.py"
# Each form in which the service may give an image; the last is a list of all.
CALL = f"""
import base64, json, sys
from importlib.util import find_spec
folder, *files = sys.argv[1:]
assert not any(map(find_spec, ("seedling_hf", "accelerate", "datasets", "timm", "sklearn")))
sys.path.append({str(SERVICE.parent)!r})
from endpoint_service import load_handler
handler = load_handler(folder)
from PIL import Image
answers = {{}}
for file in files:
    content = open(file, "rb").read()
    text = base64.b64encode(content).decode()
    forms = [
        content, bytearray(content), text, base64.encodebytes(content).decode(), "data:image/jpeg;base64," + text,
        Image.open(file), Image.open(file).convert("RGB"),
    ]
    answers[file] = [handler({{"inputs": form}}) for form in forms] + handler({{"inputs": forms}})
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def pushed(familiar_dir, tmp_path_factory) -> Path:
    """What `push_to_hub` has put on a Hub, in a folder, as the service downloads it."""
    place = tmp_path_factory.mktemp("endpoint")
    run = shutil.copytree(familiar_dir, place / "run")
    with LocalHub(place / "hub", tokens={"hf_alice_secret": User("alice")}, port=free_port()) as hub:
        result = Client(hub, place / "home").command("push_to_hub", "--output_dir", run, "--hub_model_id", "seedlings")
        assert result.returncode == 0, result.stdout
        repository = Repository(hub, "alice/seedlings")
        folder = place / "repository"
        folder.mkdir()
        for name in repository.tree():
            (folder / name).write_bytes(repository.read(name))
    return folder


@pytest.fixture(scope="module")
def files(sample_dir, strange_image) -> list[Path]:
    chosen = {"Black-grass": 20, "Charlock": 20, "Maize": 20, "Cleavers": 20, "Small-flowered Cranesbill": 0}
    return [*(sorted((sample_dir / name).iterdir())[number] for name, number in chosen.items()), strange_image]


@pytest.fixture(scope="module")
def judgements(familiar_dir, files) -> list:
    """What `predict` says of the files."""
    model, image_processor = load_classifier(str(familiar_dir))
    model = add_familiarity(model, Pretrained(str(familiar_dir)))
    with torch.inference_mode():
        images = [to_rgb(read_image(file)) for file in files]
        outputs = model(image_processor(images, return_tensors="pt")["pixel_values"])
    return judge(outputs, list_classes(model.config), choose_certainty(model), top_k=4)


@pytest.fixture(scope="module")
def handler(pushed) -> EndpointHandler:
    return EndpointHandler(str(pushed))


def expected(judgement) -> list[dict]:
    answer = [{"label": name, "score": pytest.approx(score, abs=1e-6)} for name, score in judgement.ranking]
    return [answer[0] | {"certainty": judgement.certainty}, *answer[1:]]


def alone(home: Path) -> dict[str, str]:
    """An environment without this project's folders and caches."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    return kept | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def in_base64(image: Image.Image, format: str = "PNG", **options) -> str:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def write_packages(folder: Path, *names: str) -> None:
    """Links `names` and what they require into a folder, as pip would install them into an empty environment."""
    folder.mkdir()
    waiting, done = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):  # not needed on this machine
            package = metadata.distribution(name)
            for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
                if not (folder / top).exists():
                    (folder / top).symlink_to(package.locate_file(top))
            wanted = map(Requirement, package.requires or [])
            waiting += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]


def call_alone(pushed: Path, files: list[Path], place: Path, packages: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Calls the handler in a process that can import `packages` and what they require, and nothing else."""
    write_packages(place / "packages", *packages)
    environment = alone(place / "home") | {"PYTHONPATH": str(place / "packages")}
    return subprocess.run(
        [sys.executable, "-S", "-P", "-c", CALL, str(pushed), *map(str, files)], cwd=place, env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_every_form_of_an_image_gets_the_answer_of_predict_without_the_package(pushed, files, judgements, tmp_path):
    result = call_alone(pushed, files, tmp_path, ("torch", "torchvision", "transformers"))
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout.split("ANSWERS")[1])
    for file, judgement in zip(files, judgements, strict=True):
        assert answers[str(file)] == 14 * [expected(judgement)]


@pytest.mark.slow
def test_without_torchvision_there_is_nothing_to_read_images_with(pushed, files, tmp_path):
    """So that a process for tests really lacks what is not named."""
    result = call_alone(pushed, files[:1], tmp_path, ("torch", "transformers"))
    assert result.returncode != 0
    assert "No module named 'PIL'" in result.stderr, result.stderr


def test_the_answers_have_every_certainty(judgements):
    """So that the tests above compare all of them."""
    assert {judgement.certainty for judgement in judgements} == {SURE, NOT_SURE, UNFAMILIAR}


# Over HTTP


@contextlib.contextmanager
def serving(folder: Path, home: Path, task: str):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-P", str(SERVICE), str(folder), str(port), task]
    with open(home.with_suffix(".log"), "w+") as log:
        process = subprocess.Popen(command, env=alone(home), stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: process.poll() is not None or answers(port), timeout=120)
            assert process.poll() is None, Path(log.name).read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
        return response.read() == b"Ok"
    return False


def post(address: str, body: bytes, content_type: str = "application/json") -> tuple[int, object]:
    request = urllib.request.Request(address, body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("task", ["custom", pytest.param("image-classification", marks=pytest.mark.slow)])
def test_the_clients_of_the_task_read_the_answers_of_a_service(pushed, files, judgements, tmp_path, task, monkeypatch):
    from huggingface_hub import InferenceClient

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this machine is no network
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(pushed, tmp_path / "home", task) as address:
        client = InferenceClient(model=address)
        for file, judgement in zip(files, judgements, strict=True):
            # The client sends the bytes of the file, and base64 in JSON where there are parameters.
            assert [dict(each) for each in client.image_classification(file)] == expected(judgement)
            few = client.image_classification(file, top_k=2)
            assert [(each.label, pytest.approx(each.score, abs=1e-6)) for each in few] == judgement.ranking[:2]
            assert few[0].certainty == judgement.certainty
        content = files[0].read_bytes()
        assert post(f"{address}?top_k=1", content, "image/jpeg") == (200, expected(judgements[0])[:1])
        texts = [base64.b64encode(file.read_bytes()).decode() for file in files]
        status, batch = post(address, json.dumps({"inputs": texts}).encode())
        assert (status, batch) == (200, [expected(judgement) for judgement in judgements])
        refused = {"inputs": texts[0], "parameters": {"top_k": 0}}
        message = "expected top_k to be a whole number from 1 on, found 0"
        assert post(address, json.dumps(refused).encode()) == (400, {"error": message})


# What is asked for


def test_scores_are_probabilities_by_default(handler, files):
    answer = handler({"inputs": files[0].read_bytes()})
    assert sum(each["score"] for each in answer) == pytest.approx(1)  # four classes, of which five are named


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none", "SIGMOID"])
def test_scores_are_those_of_the_pipeline_of_transformers(handler, pushed, files, function):
    from transformers import pipeline

    theirs = pipeline("image-classification", model=str(pushed), trust_remote_code=True)
    answer = handler({"inputs": files[0].read_bytes(), "parameters": {"function_to_apply": function, "top_k": 3}})
    found = [(each["label"], each["score"]) for each in answer]
    assert found == [
        # BatchNorms are folded into the convolutions, which rounds another way.
        (each["label"], pytest.approx(each["score"], abs=1e-4))
        for each in theirs(str(files[0]), function_to_apply=function, top_k=3)
    ]
    assert answer[0]["certainty"] == handler({"inputs": files[0].read_bytes()})[0]["certainty"]


def test_more_images_than_a_batch_are_answered_in_their_order(handler, files, monkeypatch):
    monkeypatch.setattr(seedling_hf.hub.handler, "BATCH_SIZE", 4)
    images = [Image.open(file) for file in files]
    batch = handler({"inputs": images})
    for image, answer in zip(images, batch, strict=True):
        assert [each["label"] for each in answer] == [each["label"] for each in handler({"inputs": image})]


def test_an_image_is_turned_upright(handler, files):
    image = Image.open(files[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    turned = in_base64(image.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert handler({"inputs": turned}) == handler({"inputs": image})
    # The service decodes a body before the handler sees it.
    decoded = Image.open(BytesIO(base64.b64decode(turned))).convert("RGB")
    assert handler({"inputs": decoded}) == handler({"inputs": image})


def test_grey_of_16_bits_and_transparency_are_read_as_by_predict(handler, files, tmp_path):
    grey = np.asarray(Image.open(files[0]).convert("L")).astype(np.uint16) << 8
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.open(files[0]).convert("RGBA").quantize(64).save(tmp_path / "palette.png", transparency=3)
    for path in tmp_path.iterdir():
        ours = to_rgb(read_image(path))
        assert handler({"inputs": path.read_bytes()}) == handler({"inputs": ours}), path.name


def test_what_is_read_is_what_predict_reads():
    assert tuple(SUFFIXES) == FORMATS
    assert LONGEST == LARGEST_ASPECT_RATIO


# What a model can say


def write_folder(model: Path, folder: Path, **fields) -> Path:
    """A copy of a model folder with other fields in its configuration."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def test_a_model_without_a_threshold_says_only_what_is_unfamiliar(pushed, files, judgements, tmp_path):
    handler = EndpointHandler(str(write_folder(pushed, tmp_path / "model", confidence_threshold=None)))
    assert handler({"inputs": files[-1].read_bytes()})[0]["certainty"] == UNFAMILIAR
    familiar = next(file for file, said in zip(files, judgements, strict=True) if said.certainty == SURE)
    assert "certainty" not in handler({"inputs": familiar.read_bytes()})[0]


def test_a_model_that_knows_nothing_of_its_images_says_what_is_sure(pushed, files, tmp_path):
    folder = write_folder(pushed, tmp_path / "model")
    (folder / "familiarity.safetensors").unlink()
    answer = EndpointHandler(str(folder))({"inputs": files[-1].read_bytes()})
    assert answer[0]["certainty"] == (SURE if answer[0]["score"] >= 0.5 else NOT_SURE)


def test_a_model_that_knows_neither_gives_the_plain_answer(model_dir, files):
    answer = EndpointHandler(str(model_dir))({"inputs": files[0].read_bytes()})
    assert [set(each) for each in answer] == 4 * [{"label", "score"}]


def test_what_is_familiar_to_another_network_is_refused_at_the_start(pushed, tmp_path):
    folder = write_folder(pushed, tmp_path / "model")
    tensors = load_file(folder / "familiarity.safetensors")
    save_file(tensors | {"center": torch.zeros(3)}, folder / "familiarity.safetensors")
    with pytest.raises(ValueError, match=r"expected 160 features of this network in familiarity.safetensors, found 3"):
        EndpointHandler(str(folder))


# What is refused


def damaged() -> str:
    content = base64.b64decode(in_base64(Image.linear_gradient("L"), "JPEG"))
    return base64.b64encode(content[: len(content) // 2]).decode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, 'expected a request with "inputs", found none; send {"inputs": IMAGE IN BASE64}'),
        ("text", 'expected a request with "inputs", found none'),
        ({"inputs": []}, "expected at least one image in inputs, found an empty list"),
        ({"inputs": None}, "expected an image in inputs, found NoneType; send its bytes, or base64"),
        ({"inputs": {"image": "a"}}, "expected an image in inputs, found dict; send its bytes, or base64"),
        ({"inputs": 3.5}, "expected an image in inputs, found float; send its bytes, or base64"),
        ({"inputs": ""}, "expected an image in base64 in inputs, found nothing"),
        ({"inputs": "/var/lib/nonexistent"}, "found 15 bytes that are none of JPEG, PNG"),
        ({"inputs": "what is this plant?"}, "expected an image in base64 in inputs, found other text"),
        (
            {"inputs": "https://example.org/a.jpg"},
            "expected an image in base64 in inputs, found an address; download it, and send the image itself",
        ),
        ({"inputs": "file:///etc/passwd"}, "found an address"),
        ({"inputs": "data:text/plain,hello"}, "expected an image in base64 in inputs, found other text"),
        ({"inputs": b"GIF89a"}, "in inputs, found 6 bytes that are none of JPEG"),
        ({"inputs": b"%!PS-Adobe-3.0"}, "in inputs, found 14 bytes that are none of JPEG"),
        ({"inputs": damaged()}, "expected a whole image in inputs, found that it is damaged (image file is truncated"),
        ({"inputs": [Image.new("RGB", (9, 9)), "?"]}, "expected an image in base64 in inputs[1], found other text"),
        (
            {"inputs": Image.new("L", (2020, 20))},
            "pixels in inputs, and at most 100 times as long as wide, found 2020×20; make it smaller",
        ),
        ({"inputs": "a", "parameters": [1]}, "expected parameters to be an object, found list"),
        ({"inputs": "a", "parameters": {"top_k": True}}, "expected top_k to be a whole number from 1 on, found True"),
        ({"inputs": "a", "parameters": {"top_k": "3"}}, "expected top_k to be a whole number from 1 on, found '3'"),
        (
            {"inputs": "a", "parameters": {"temperature": 1, "candidate_labels": []}},
            "expected the parameters top_k and function_to_apply, found candidate_labels, temperature; leave it out",
        ),
        (
            {"inputs": "a", "parameters": {"function_to_apply": "tanh"}},
            "expected function_to_apply to be softmax, sigmoid, none, found 'tanh'",
        ),
    ],
)
def test_a_bad_request_gets_one_sentence(handler, data, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        handler(data)
    assert "\n" not in str(caught.value)


def test_an_image_of_more_pixels_than_memory_is_refused_before_it_is_decoded(handler, monkeypatch):
    text = in_base64(Image.new("L", (400, 300)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="at most 100,000 pixels in inp"):
        handler({"inputs": text})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match=r"expected a whole image in inputs, found that it is damaged \(Image size"):
        handler({"inputs": text})


# The files


def test_the_handler_imports_nothing_but_what_its_requirements_bring():
    tree = ast.parse(Path(seedling_hf.hub.handler.__file__).read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    found = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert found == {"PIL", "numpy", "safetensors", "torch", "transformers"}


def test_the_oldest_transformers_is_that_of_the_package_everywhere():
    oldest = re.search(r'"transformers>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    requirements = (ROOT / "seedling_hf" / "hub" / "handler_requirements.txt").read_text(encoding="utf-8")
    assert requirements.splitlines()[1:] == [f"transformers>={oldest}"]
    for name in ("model_card.md", "docs/hub.md"):
        assert f"`transformers` {oldest} or newer" in (ROOT / name).read_text(encoding="utf-8"), name


def test_each_file_says_who_writes_it(familiar_dir):
    files = endpoint_files(familiar_dir)
    assert files.keys() == ENDPOINT_FILES.keys() == {"handler.py", "requirements.txt"}
    assert all(MARK in path.read_text(encoding="utf-8") for path in files.values())


def test_other_networks_get_no_handler(tmp_path):
    assert endpoint_files(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"model_type": "timm_wrapper"}')
    assert endpoint_files(tmp_path) == {}


def test_a_handler_of_the_folder_is_pushed_in_place_of_ours(familiar_dir, tmp_path):
    folder = shutil.copytree(familiar_dir, tmp_path / "model")
    (folder / "handler.py").write_text("class EndpointHandler: ...\n")
    (folder / "requirements.txt").write_text(f"# of an earlier push; {MARK}\ntransformers>=5\n")
    files = endpoint_files(folder)
    assert files["handler.py"] == folder / "handler.py"
    assert files["requirements.txt"].parent == Path(seedling_hf.hub.handler.__file__).parent
