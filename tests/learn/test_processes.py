"""Several processes train as one: the same losses, gradients and weights, one voice, one writer, and no one left waiting."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from in_processes import followed
from PIL import Image

from espy.learn import checkpoint
from runs import recipe
from trees import clear_shapes

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = Path(__file__).parent
TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--local-addr=127.0.0.1",
    "--nproc-per-node=2",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
LOSS = {"dice": 0.5, "smoothing": 0.1, "class_weights": "frequency", "auxiliary": 0.4}
LATE_S = 200  # each launch takes 10 s where nothing else runs
STEPS, PER_EPOCH = 6, 2
ROUNDING = 1e-5
"""Of the largest value of a tensor. Sums over a batch add up in another order in two halves: float32's 6e-8 a sum, about 100
terms deep, through 6 steps; 1e-7 was seen in losses, 1e-6 in weights and gradients. Other batches differ by 1e-2 and more."""


def settings(folder):
    """A recipe of 6 steps, 8 pictures with unequal shares of void, and every part of the loss."""
    clear_shapes(folder / "photos", pairs=8, height=32, width=48, split="train")
    for k, path in enumerate(sorted((folder / "photos" / "masks" / "train").iterdir())):
        truth = np.array(Image.open(path))
        truth[: 3 * k] = 255
        Image.fromarray(truth).save(path)
    train = {"epochs": 3, "batch": 4, "optimiser": "sgd", "rate": 0.1, "warm_up": 0.5, "freeze_norm": True}
    return recipe(
        folder / "r.toml",
        "photos",
        data={"validate": "train"},
        train=train,
        loss=LOSS,
        validate={"every": 2, "pictures": 1},
    )


def launched(*arguments, cwd, until=None):
    """Exit code and stderr's lines of in_processes.py in two processes; SIGTERM is sent once a line starts with `until`."""
    call = [*TORCHRUN, str(HERE / "in_processes.py"), *arguments]
    said = []
    with subprocess.Popen(call, cwd=cwd, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        late = threading.Timer(LATE_S, process.terminate)  # torchrun ends its processes, by force after half a minute
        late.start()
        for line in process.stderr:
            said.append(line)
            if until and line.startswith(until):
                process.terminate()
        late.cancel()
    return process.returncode, said


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which two processes did all cases of in_processes.py, and what each of them met."""
    folder = tmp_path_factory.mktemp("two")
    settings(folder)
    (folder / "results").mkdir()
    code, said = launched("results", cwd=folder)
    assert code == 0, "".join(said)
    return folder, [json.loads((folder / "results" / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process's run of the same recipe: its folder and losses."""
    return by_itself(tmp_path_factory.mktemp("one"))


def by_itself(folder, **overrides):
    settings(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return folder / "whole", followed("r.toml", "whole", **overrides)["losses"]
    finally:
        os.chdir(before)


def assert_same_training(one, other):
    """Weights, their average and the sums of gradients (sgd's momentum) of two runs' ends."""
    (mine, _), (theirs, _) = (checkpoint.read(folder / "last.ckpt") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    kinds = {name.partition(".")[0] for name in mine}
    assert kinds == {"learner", "average", "optimiser"}
    for name, array in mine.items():
        np.testing.assert_allclose(theirs[name], array, rtol=0, atol=ROUNDING * np.abs(array).max(), err_msg=name)


def test_two_processes_have_the_losses_of_one_at_every_step(done, alone):
    _, (first, second) = done
    assert len(alone[1]) == STEPS
    assert first["whole"]["losses"] == second["whole"]["losses"]
    np.testing.assert_allclose(first["whole"]["losses"], alone[1], rtol=ROUNDING)


def test_two_processes_end_with_the_gradients_and_weights_of_one(done, alone):
    assert_same_training(alone[0], done[0] / "whole")


def test_a_batch_in_two_parts_is_the_batch(alone, tmp_path):
    folder, losses = by_itself(tmp_path, accumulate=2)
    np.testing.assert_allclose(losses, alone[1], rtol=ROUNDING)
    assert_same_training(alone[0], folder)


def test_batches_differ_by_more_than_the_tolerance(alone, tmp_path):
    """The control: with other pictures in a batch the same comparison fails."""
    folder, losses = by_itself(tmp_path, seed=1)
    assert not np.allclose(losses, alone[1], rtol=100 * ROUNDING)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_training(alone[0], folder)


def test_the_first_process_writes_the_folder_and_the_other_nothing(done):
    folder, (first, second) = done
    assert second["written"] == []
    assert any("whole" in path for path in first["written"])
    expected = {"recipe.toml", "environment.json", "metrics.jsonl", "last.ckpt", "best.safetensors", "last.safetensors",
                "events", "pictures"}  # fmt: skip
    assert expected <= {path.name for path in (folder / "whole").iterdir()}
    assert json.loads((folder / "whole" / "environment.json").read_text())["starts"][0]["processes"] == 2
    assert (first["whole"]["lines"], second["whole"]["lines"]) == (3, 0)


def test_a_stop_signal_to_one_process_stops_both_after_the_step_and_a_resumed_run_ends_the_same(done):
    folder, results = done
    assert [result["stopped"] for result in results] == [{"code": 143}] * 2
    assert [result["resumed"]["losses"] for result in results] == [results[0]["whole"]["losses"][3:]] * 2
    whole, resumed = ((folder / name / "last.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == resumed


def test_clocks_that_disagree_on_when_to_save_part_no_process_from_the_others(done):
    _, (first, second) = done
    assert first["clocks"]["losses"] == second["clocks"]["losses"] == first["whole"]["losses"]


@pytest.mark.parametrize(
    ("case", "speaker", "words"),
    [
        ("refused", 0, "whole: holds a run already: continue it with --resume"),
        ("one faulty", 1, ": damaged"), ("spoilt", 0, "spoilt/best.safetensors: is a folder"),
    ],
)  # fmt: skip
def test_what_fails_in_one_process_ends_both_with_its_words(done, case, speaker, words):
    _, results = done
    assert words in results[speaker][case]["error"]
    assert results[1 - speaker][case]["error"] == f"process {speaker}: {results[speaker][case]['error']}"


def test_what_fails_in_both_is_said_by_each_as_its_own(done):
    _, (first, second) = done
    assert first["no init"] == second["no init"]
    assert first["no init"]["error"].startswith("nowhere: no such model file")


def test_a_loss_that_is_not_finite_names_the_files_of_all_processes(done):
    _, (first, second) = done
    assert first["not finite"] == second["not finite"]
    files = first["not finite"]["error"].partition("files: ")[2].split(", ")
    assert len(set(files)) == 4


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("command", 0, "epoch 1/3, step 1/6, "), ("taken", 2, "espy: whole: holds"), ("profile", 0, "waiting for pictures"),
        ("other recipe", 2, "train.rate: 0.1 -> 0.5"), ("unknown field", 2, "did you mean 'epochs'?"),
        ("no set", 2, "espy: none: no such folder"),
    ],
)  # fmt: skip
def test_a_command_speaks_with_one_voice_and_ends_everywhere_with_one_code(done, case, code, words):
    folder, (first, second) = done
    assert (second[case]["out"], second[case]["err"]) == ("", "")
    assert first[case]["code"] == second[case]["code"] == code
    assert (first[case]["out"] + first[case]["err"]).count(words) == 1
    assert not (folder / "unknown").exists()


def test_torchrun_stopped_by_a_signal_leaves_a_run_to_resume(tmp_path):
    settings(tmp_path)
    code, said = launched("train", "r.toml", "epochs=10000", "--out", "run", cwd=tmp_path, until="epoch 2/")
    assert code != 0
    assert sum("stopping after this step" in line for line in said) == 1, said
    assert not any("espy: " in line for line in said), said
    _, state = checkpoint.read(tmp_path / "run" / "last.ckpt")
    assert state["step"] >= PER_EPOCH
