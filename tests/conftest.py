"""What every test relies on: no network, and the sample of real images."""

import os
import signal
from pathlib import Path

import pytest
from sample import SAMPLE, copy_sample

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # how much is said of the progress depends on the speed of the machine
# There is a worker for each core, and runs that are compared must not choose another number on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Signals have their usual effects: a shell's background, and nohup, let programs ignore some of them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core, up to eight, for the whole suite; none for chosen tests, which then start at once."""
    option = config.option
    single = any(Path(argument.split("::")[0]).is_file() for argument in config.args)
    if single or option.keyword or option.collectonly or option.capture == "no" or option.markexpr != "not slow":
        return 0
    return min(os.cpu_count() or 1, 8)


@pytest.fixture(scope="session")
def sample_dir() -> Path:
    """The class folders of the sample of real seedlings (40 images a class)."""
    return SAMPLE


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Three classes of sixteen images: 32 of them train, 4 steps of 8 an epoch."""
    names = ("Black-grass", "Charlock", "Maize")
    return copy_sample(tmp_path_factory.mktemp("data") / "images", names, slice(16))


@pytest.fixture(scope="session")
def model_dir(sample_dir, tmp_path_factory) -> Path:
    """A model folder of four species, with weights that answer differently to different images; to read only."""
    from small_models import write_model

    folder = tmp_path_factory.mktemp("model")
    write_model(folder, sample_dir)
    return folder


@pytest.fixture(scope="session")
def familiar_dir(model_dir, sample_dir, tmp_path_factory) -> Path:
    """The same model, which is sure from a probability of 0.5 on and knows what is unfamiliar; to read only."""
    import shutil

    from small_models import write_familiarity

    folder = shutil.copytree(model_dir, tmp_path_factory.mktemp("familiar") / "model")
    write_familiarity(folder, sample_dir)
    return folder


@pytest.fixture(scope="session")
def strange_image(tmp_path_factory) -> Path:
    """What is unfamiliar to that model."""
    from small_models import write_strange_image

    write_strange_image(path := tmp_path_factory.mktemp("strange") / "umbrella.png")
    return path


@pytest.fixture
def unsettled_precision():
    """Accelerate settles the precision once for a process; each test may choose."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
