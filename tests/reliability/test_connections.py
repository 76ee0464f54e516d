"""Proxies, logins, the cache of downloaded files, and the page in the browser."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from demo_server import serve
from hub_client import COMMAND, HEAVY, TOKENS, Client, clean, free_port
from local_hub import Fault, LocalHub

MODEL, DATASET = "alice/seedlings", "alice/photographs"
EXPIRED = "hf_expired_secret"
TRAIN = [
    "--variant", "tiny", "--image_size", 32, "--max_steps", 1, "--eval_steps", 1, "--per_device_train_batch_size", 4,
    "--output_dir", "run",
]  # fmt: skip


@pytest.fixture(scope="module")
def shared_hub(model_dir, images, tmp_path_factory) -> Iterator[LocalHub]:
    """A Hub with a public model and a public dataset; tests set its faults."""
    folder = tmp_path_factory.mktemp("hub")
    with LocalHub(folder / "hub", tokens=dict(TOKENS), port=free_port()) as hub:
        alice = Client(hub, folder / "home")
        shutil.copytree(model_dir, folder / "model")
        pushed = alice.command("push_to_hub", "--output_dir", folder / "model", "--hub_model_id", MODEL)
        assert pushed.returncode == 0, pushed.stdout
        words = ["push_dataset", "--train_dir", images, "--dataset_name", DATASET, "--license", "cc-by-4.0"]
        pushed = alice.command(*words)
        assert pushed.returncode == 0, pushed.stdout
        yield hub


@pytest.fixture
def hub(shared_hub) -> Iterator[LocalHub]:
    yield shared_hub
    shared_hub.faults.clear()


def commands(images: Path) -> dict[str, list]:
    """Each command that reads a model or a dataset on the Hub."""
    model, folder = ["--model_name_or_path", MODEL], ["--data_dir", images]
    image = next((images / "Maize").iterdir())
    return {
        "predict": ["predict", *model, "--images", image],
        "demo": ["demo", *model],
        "train": ["train", "--train_dir", images, *model, "--ignore_mismatched_sizes", *TRAIN[2:]],
        "teacher": ["train", "--train_dir", images, "--teacher_model_name_or_path", MODEL, *TRAIN],
        "compare": ["compare", "--models", MODEL, "alice/other", *folder, "--output_dir", "compared"],
        "evaluate": ["evaluate", *model, "--test_dir", images, "--output_dir", "report"],
        "embed": ["embed", *model, "--images", image, "--embeddings_file", "embeddings.parquet"],
        "saliency": ["saliency", *model, "--images", image, "--output_dir", "maps"],
        "export": ["export", *model, "--images", image, "--output_file", "model.onnx"],
        "dataset": ["train", "--dataset_name", DATASET, *TRAIN],
        "stream": ["train", "--dataset_name", DATASET, "--streaming", *TRAIN],
        "resume": ["train", "--train_dir", images, "--resume_from_checkpoint", MODEL, *TRAIN],
    }


def pushes(model_dir: Path, images: Path) -> dict[str, list]:
    """Each command that writes to the Hub; with names of its own, for nobody reads what it would write."""
    data = ["--license", "cc-by-4.0", "--train_dir", images]
    return {
        "push_to_hub": ["push_to_hub", "--output_dir", model_dir, "--hub_model_id", "alice/new"],
        "push_dataset": ["push_dataset", *data, "--dataset_name", "alice/new"],
        "push_space": ["push_space", "--model_name_or_path", MODEL, "--hub_space_id", "alice/new"],
        "train": ["train", "--train_dir", images, "--push_to_hub", "--hub_model_id", "alice/new", *TRAIN],
    }


NAMES = list(commands(Path(__file__).parents[2] / "scripts/sample/seedlings"))
PUSHES = ["push_to_hub", "push_dataset", "push_space", "train"]


def finish(client: Client, words: list, folder: Path, timeout: float = 120) -> subprocess.CompletedProcess:
    """Runs a command in `folder`, with the modules of training loaded."""
    folder.mkdir(exist_ok=True)
    program = f"import os; os.chdir({str(folder)!r})\n{COMMAND}"
    return client.start(program, *words, modules=HEAVY).finish(timeout)


def assert_sentence(result: subprocess.CompletedProcess, *parts: str, code: int = 2) -> str:
    """One sentence that is not cut at a colon, without a traceback and without a token."""
    assert result.returncode == code, result.stdout
    assert "Traceback" not in result.stdout, result.stdout
    (sentence,) = [line for line in result.stdout.splitlines() if line.startswith("error: ")]
    assert not sentence.rstrip().endswith(":"), sentence
    for part in parts:
        assert part in sentence, result.stdout
    assert not any(token in result.stdout for token in (*TOKENS, EXPIRED))
    return sentence


# Tokens


@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_expired_is_named_with_its_source(hub, images, tmp_path, name):
    client = Client(hub, tmp_path / "home", EXPIRED)
    result = finish(client, commands(images)[name], tmp_path / "run")
    assert_sentence(result, "401", "token", "expired", "HF_TOKEN", "public repository can be read without one")


@pytest.mark.parametrize("name", PUSHES)
def test_a_push_with_a_token_that_expired_is_one_sentence(hub, model_dir, images, tmp_path, name):
    client = Client(hub, tmp_path / "home", EXPIRED)
    result = finish(client, pushes(model_dir, images)[name], tmp_path / "run")
    assert_sentence(result, "401", "token", "expired", "HF_TOKEN", code=2 if name == "train" else 1)


@pytest.mark.parametrize("token", [None, EXPIRED])
@pytest.mark.parametrize("name", ["predict", "dataset"])
def test_a_repository_that_is_not_there_is_named_so(hub, images, tmp_path, name, token):
    words = [
        str(word).replace(MODEL, "alice/nothing").replace(DATASET, "alice/none") for word in commands(images)[name]
    ]
    result = finish(Client(hub, tmp_path / "home", token), words, tmp_path / "run")
    assert_sentence(result, "401", "expired" if token else "does not exist, or is private", "HF_TOKEN")


@pytest.mark.parametrize("name", ["predict", "train", "compare", "dataset", "stream"])
def test_a_gated_repository_says_where_to_ask(hub, images, tmp_path, name):
    gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this repository is restricted."}
    hub.faults.append(Fault(path=r"/resolve/|/api/datasets/|/tree/", status=403, headers=gated))
    result = finish(Client(hub, tmp_path / "home", "hf_bob_secret"), commands(images)[name], tmp_path / "run")
    assert_sentence(result, "403", "access to the repository is restricted", "ask for it on its page", "HF_TOKEN")


@pytest.mark.parametrize("name", ["predict", "dataset"])
def test_a_revision_that_is_not_there_is_named_so(hub, images, tmp_path, name):
    flag = "--model_revision" if name == "predict" else "--dataset_revision"
    result = finish(Client(hub, tmp_path / "home"), [*commands(images)[name], flag, "v9"], tmp_path / "run")
    assert_sentence(result, "no such branch, tag or commit")


@pytest.mark.parametrize("status", [500, 503, 429, 418])
@pytest.mark.parametrize("name", ["predict", "dataset"])
def test_a_hub_that_fails_is_named_with_its_answer(hub, images, tmp_path, name, status):
    hub.faults.append(Fault(path=r"/resolve/|/api/", status=status))
    result = finish(Client(hub, tmp_path / "home"), commands(images)[name], tmp_path / "run")
    assert_sentence(result, MODEL if name == "predict" else DATASET, str(status))


# Proxies


class Refusing(BaseHTTPRequestHandler):
    """A proxy that wants a password."""

    def do_GET(self) -> None:
        self.send_error(407)

    do_HEAD = do_POST = do_CONNECT = do_GET  # noqa: N815

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def refusing_proxy() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def behind(hub: LocalHub, home: Path, **environment: str) -> Client:
    client = Client(hub, home)
    own = client.environment | {"NO_PROXY": ""} | environment
    return type("Behind", (Client,), {"environment": property(lambda self: own)})(hub, home)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize("name", ["predict", "dataset"])
def test_a_socks_proxy_without_its_package_names_both(hub, images, tmp_path, name, variable):
    if variable == "HTTP_PROXY" and name == "dataset":
        variable = "http_proxy"
    client = behind(hub, tmp_path / "home", **{variable: f"socks5://{nobody()}"})
    result = finish(client, commands(images)[name], tmp_path / "run")
    assert_sentence(result, variable, "httpx[socks]")


@pytest.mark.parametrize("name", PUSHES)
def test_a_push_through_a_socks_proxy_without_its_package_names_both(hub, model_dir, images, tmp_path, name):
    client = behind(hub, tmp_path / "home", ALL_PROXY=f"socks5h://{nobody()}")
    result = finish(client, pushes(model_dir, images)[name], tmp_path / "run")
    assert_sentence(result, "ALL_PROXY", "httpx[socks]", code=2 if name == "train" else 1)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize("name", ["predict", "demo", "dataset", "push_to_hub"])
def test_a_proxy_that_cannot_be_reached_is_named(hub, model_dir, images, tmp_path, name, variable):
    address = nobody()
    client = behind(hub, tmp_path / "home", **{variable: f"http://someone:password@{address}"})
    words = (commands(images) | {"push_to_hub": pushes(model_dir, images)["push_to_hub"]})[name]
    result = finish(client, words, tmp_path / "run")
    assert_sentence(result, variable, address, "NO_PROXY", code=1 if name == "push_to_hub" else 2)
    assert "password" not in result.stdout


@pytest.mark.parametrize("name", ["predict", "dataset"])
def test_a_proxy_that_wants_a_password_is_said(hub, images, tmp_path, name, refusing_proxy):
    client = behind(hub, tmp_path / "home", HTTP_PROXY=refusing_proxy)
    assert_sentence(finish(client, commands(images)[name], tmp_path / "run"), "407", "HTTP_PROXY")


@pytest.mark.parametrize("name", ["predict", "dataset"])
@pytest.mark.parametrize("value", ["ftp://proxy:21", "socks4://proxy:1080", "http://[proxy"])
def test_a_proxy_that_no_library_knows_is_named(hub, images, tmp_path, name, value):
    client = behind(hub, tmp_path / "home", ALL_PROXY=value)
    assert_sentence(finish(client, commands(images)[name], tmp_path / "run"), "ALL_PROXY", "unset")


PROXIES = {
    "socks": {"ALL_PROXY": "socks5://127.0.0.1:9"},
    "http": {"HTTP_PROXY": "http://127.0.0.1:9"},
    "lower": {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
    "all with exceptions": {"all_proxy": "socks5://127.0.0.1:9", "NO_PROXY": "example.com"},
    "exceptions of ours": {"HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": "intranet"},
    "unknown": {"ALL_PROXY": "ftp://127.0.0.1:9"},
}


@pytest.mark.parametrize("proxies", PROXIES)
def test_the_page_of_a_local_model_is_served_whatever_the_proxy(model_dir, tmp_path, proxies):
    process = subprocess.Popen(
        [sys.executable, "-m", "seedling_hf", "demo", "--model_name_or_path", str(model_dir)],
        env=clean({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | PROXIES[proxies]), cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        address = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert address, line + process.stdout.read()
        with socket.create_connection(("127.0.0.1", int(address[1])), timeout=30) as page:
            page.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in page.recv(100)
    finally:
        process.kill()
        process.wait()


# HF_HOME


@pytest.mark.parametrize("name", ["predict", "dataset"])
@pytest.mark.parametrize("fault", ["a file", "full", "read-only"])
def test_a_cache_that_cannot_be_written_is_named(hub, images, tmp_path, name, fault):
    home = tmp_path / "home"
    with contextlib.ExitStack() as stack:
        if fault == "a file":
            home.write_text("no folder")
        else:
            home.mkdir()
            options = "size=4k" if fault == "full" else "ro"
            mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", home], capture_output=True)
            if mounted.returncode:
                pytest.skip("needs the right to mount")
            stack.callback(subprocess.run, ["umount", "-l", home])
        client = Client(hub, home, fresh=True)
        result = subprocess.run(
            [sys.executable, "-P", "-c", COMMAND, *map(str, commands(images)[name])], cwd=tmp_path,
            env=clean(client.environment | {"HF_HUB_DISABLE_XET": "1"}), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=200,
        )  # fmt: skip
        assert_sentence(result, "HF_HOME", str(home))
    assert os.path.exists(home)


# The page


def served(model_dir: Path, folder: Path) -> AbstractContextManager[tuple[str, subprocess.Popen]]:
    """The command `demo`, with `folder` for temporary files, and its address."""
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    return serve(model_dir, environment=clean(environment))


def memory_of(process: subprocess.Popen) -> float:
    """The most memory that a process has used, in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


@pytest.mark.parametrize("form", ["png", "tiff", "bmp"])
def test_the_page_refuses_an_image_of_too_many_pixels_without_its_memory(model_dir, images, tmp_path, form):
    from browser import open_browser
    from PIL import Image

    large = tmp_path / f"large.{form}"
    Image.new("1", (11_000, 8_000)).save(large)
    with served(model_dir, tmp_path) as (address, process), open_browser() as browser:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("input[type=file]", state="attached")
        before = memory_of(process)
        page.set_input_files("input[type=file]", large)
        page.wait_for_selector("#sentence h2:has-text('The image is too large')")
        assert memory_of(process) - before < 300
        page.reload()
        page.set_input_files("input[type=file]", next((images / "Maize").iterdir()))
        page.wait_for_selector("#sentence h2")


def test_the_page_takes_no_upload_without_end(model_dir, tmp_path):
    boundary = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    with served(model_dir, tmp_path) as (address, process):
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=60) as connection:
            size = 200_000_000
            head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address[7:]}\r\nContent-Length: {size}\r\n"
            connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode() + boundary)
            with contextlib.suppress(OSError):
                for _ in range(190):
                    connection.sendall(bytes(1_000_000))
            with contextlib.suppress(OSError):
                assert b" 413 " in connection.recv(100)
        written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert written < 100_000_000
        assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("parent", ["TMPDIR", "GRADIO_TEMP_DIR"])
def test_uploads_are_removed_when_the_page_is_stopped(model_dir, images, tmp_path, number, parent, monkeypatch):
    from urllib.request import Request, urlopen

    if parent == "GRADIO_TEMP_DIR":
        monkeypatch.setenv(parent, str(tmp_path / "uploads"))
    (tmp_path / "of the user").write_text("kept")
    with served(model_dir, tmp_path) as (address, process):
        content = next((images / "Maize").iterdir()).read_bytes()
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="plant.jpg"\r\n\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        urlopen(Request(f"{address}/gradio_api/upload", head + content + b"\r\n--x--\r\n", kind)).read()
        assert any(path.name == "plant.jpg" for path in tmp_path.rglob("*"))
        process.send_signal(number)
        output = process.communicate(timeout=30)[0]
        assert "Traceback" not in output
        assert process.returncode == (143 if number == signal.SIGTERM else 0)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["of the user"]
