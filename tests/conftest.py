"""Fixtures that several rooms share: tiny models, made once a session."""

import os
import signal

import pytest
import torch
from filelock import FileLock

from espy import build
from espy.header import Preprocess
from samples import calibrated, save_model

os.environ["ESPY_ENGINE"] = (
    "onnxruntime"  # in place of `auto`, here and in what tests start: no test measures engines unasked
)
signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in a shell's background would ignore Ctrl-C


def once(tmp_path_factory, name, make):
    """The file `name` of this test session, made by whichever worker of pytest-xdist comes first."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if base.name.startswith("popen-") else base
    path = root / "models" / name
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def tiny_v2(tmp_path_factory):
    """Weights of an untrained ESPNetv2, s = 0.5, 5 classes, 64x96."""

    def make(path):
        preprocess = Preprocess((64, 96))
        save_model(path, calibrated(build("espnetv2", width=0.5, classes=5, seed=0), preprocess), preprocess)

    return once(tmp_path_factory, "tiny_v2.safetensors", make)


@pytest.fixture(scope="session")
def tiny_espnet(tmp_path_factory):
    """Weights of an untrained ESPNet with 4 classes that sees 91 pixels, 64x96, any size."""

    def make(path):
        preprocess = Preprocess((64, 96), multiple=1)
        network = build("espnet", widths=(8, 16, 24), branches=2, alpha2=1, alpha3=1, classes=4, seed=0)
        save_model(path, calibrated(network, preprocess), preprocess)

    return once(tmp_path_factory, "tiny_espnet.safetensors", make)


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory, tiny_espnet):
    """The deployed graph of `tiny_espnet`, dynamic, mask alone."""
    from espy import export

    return once(tmp_path_factory, "tiny_espnet.onnx", lambda path: export(tiny_espnet, path=path))


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory):
    """Weights of an untrained classifier of 7 classes, s = 0.5, that sees the middle of a picture at 64x64."""

    def make(path):
        preprocess = Preprocess((64, 64), resize="short")
        network = calibrated(build("espnetv2", task="classify", width=0.5, classes=7, seed=0), preprocess)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            torch.nn.init.normal_(network.classifier.weight, std=0.5)  # so that it prefers some class
        save_model(path, network, preprocess)

    return once(tmp_path_factory, "tiny_classifier.safetensors", make)


@pytest.fixture(scope="session")
def tiny_detector(tmp_path_factory):
    """Weights of an untrained detector of 3 kinds, s = 0.5, at 96x96, that sees many things everywhere."""

    def make(path):
        preprocess = Preprocess((96, 96))
        network = calibrated(build("espnetv2", task="detect", width=0.5, classes=3, seed=0), preprocess)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for head in network.heads:
                torch.nn.init.normal_(head.score.weight, std=0.3)
                torch.nn.init.normal_(head.box.weight, std=0.2)
        save_model(path, network, preprocess)

    return once(tmp_path_factory, "tiny_detector.safetensors", make)


@pytest.fixture(scope="session")
def tiny_classifier_onnx(tmp_path_factory, tiny_classifier):
    """The deployed graph of `tiny_classifier`."""
    from espy import export

    return once(tmp_path_factory, "tiny_classifier.onnx", lambda path: export(tiny_classifier, path=path))


@pytest.fixture(scope="session")
def tiny_detector_onnx(tmp_path_factory, tiny_detector):
    """The deployed graph of `tiny_detector`."""
    from espy import export

    return once(tmp_path_factory, "tiny_detector.onnx", lambda path: export(tiny_detector, path=path))


@pytest.fixture
def one_thread():
    """PyTorch on one thread, which tiny maps want; what a recipe or model sets meanwhile is undone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
