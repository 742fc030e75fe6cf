"""A checkpoint is read back bit for bit, or refused in one line: damaged, foreign, or of another run."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save

import runs
import trees
from espy import train
from espy.errors import EspyError, ModelError
from espy.learn import checkpoint
from espy.learn.checkpoint import read, write
from samples import attempt

pytestmark = pytest.mark.usefixtures("one_thread")

STATE = {"step": 3, "best": 0.5, "miou": None, "loss_sum": 1.1, "scaler": {}}
KINDS = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<i4", "|u1"]).map(np.dtype)
ARRAYS = KINDS.flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)


def refusal(path):
    found, message = attempt(ModelError, read, path)
    assert found is None, "it was read"
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of few bytes."""
    path = tmp_path_factory.mktemp("small") / "last.ckpt"
    write(path, {"w": np.float32([1, -2]), "n": np.int64(3)}, {"step": 1})
    return path


# What is written


@settings(deadline=None)
@given(tensors=st.dictionaries(st.text(min_size=1, max_size=8), ARRAYS, max_size=4))
def test_every_tensor_and_number_comes_back_bit_for_bit(tmp_path_factory, tensors):
    path = tmp_path_factory.getbasetemp() / "any.ckpt"
    tensors.pop("__metadata__", None)
    state = {**STATE, "loss_sum": 0.1 + 0.2, "best": 1 / 3, "scaler": {"scale": 65536.0}}
    write(path, tensors, state)
    found, said = read(path)
    assert said == {"format": checkpoint.FORMAT, **state}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tobytes() == tensor.tobytes()


def test_equal_states_are_equal_files(tmp_path):
    tensors = {name: np.float32([k]) for k, name in enumerate("cab")}
    write(tmp_path / "a", tensors, STATE)
    write(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(STATE.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_array_in_another_order_in_memory_is_the_same_array(tmp_path):
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    write(tmp_path / "a", {"w": grid}, STATE)
    write(tmp_path / "b", {"w": np.asfortranarray(grid)}, STATE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# Damaged


def test_no_flipped_bit_goes_unnoticed(small, tmp_path):
    """Every bit of the file, one at a time."""
    whole = small.read_bytes()
    path = tmp_path / "last.ckpt"
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        refusal(path)


def test_no_missing_end_goes_unnoticed(small, tmp_path):
    whole = small.read_bytes()
    for length in range(len(whole)):
        (tmp_path / "last.ckpt").write_bytes(whole[:length])
        refusal(tmp_path / "last.ckpt")


@settings(deadline=None)
@given(data=st.data())
def test_no_changed_stretch_goes_unnoticed(small, tmp_path_factory, data):
    whole = small.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    changed = whole[:start] + data.draw(st.binary(max_size=64)) + whole[end:]
    path = tmp_path_factory.getbasetemp() / "changed.ckpt"
    path.write_bytes(changed)
    if changed == whole:
        read(path)
    else:
        refusal(path)


def test_bytes_behind_the_end_are_damage(small, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(small.read_bytes() + b"\0")
    assert "damaged or truncated" in refusal(tmp_path / "last.ckpt")


# Foreign


def test_a_model_file_is_no_checkpoint(tiny_espnet):
    assert "no checkpoint of a run" in refusal(tiny_espnet)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"{}", bytes(64)])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    assert "damaged or truncated" in refusal(tmp_path / "last.ckpt")


def test_what_cannot_be_opened_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.ckpt")
    refusal(tmp_path)


@pytest.mark.parametrize("state", ["3", "[]", '"x"', "null", "{}", '{"format": 2}', '{"format": "1"}', "{", "\\u0000"])
def test_a_state_of_another_form_is_refused_even_where_its_sum_is_right(tmp_path, state):
    text = {checkpoint.KEY: state, checkpoint.SUM: checkpoint.digest(state, {})}
    (tmp_path / "last.ckpt").write_bytes(save({"w": np.zeros(0)}, text))
    refusal(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes(save({}, text))
    refusal(tmp_path / "last.ckpt")


# A run that goes on from it


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with pictures, a recipe and its run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    trees.folder(folder / "photos", pairs=4, height=32, width=48)
    path = runs.recipe(folder / "r.toml", folder / "photos", train={"epochs": 1}, validate={"pictures": 0})
    train(path, folder=folder / "run")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run."""
    return shutil.copytree(trained / "run", tmp_path / "run")


def resumption(trained, run, **overrides):
    """The one line that refuses to go on."""
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    found, message = attempt(EspyError, train, trained / "r.toml", folder=run, resume=True, **overrides)
    assert found is None, "it went on"
    assert "\n" not in message
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    return message


def test_a_damaged_checkpoint_stops_the_run_and_stays(trained, run):
    saved = run / "last.ckpt"
    saved.write_bytes(saved.read_bytes()[:-1])
    message = resumption(trained, run)
    assert message.startswith(f"{saved}: damaged or truncated (")
    assert message.endswith("): put back a copy, or start anew")


def test_the_weights_in_the_checkpoints_place_are_refused(trained, run):
    shutil.copy(run / "best.safetensors", run / "last.ckpt")
    assert resumption(trained, run).startswith(f"{run / 'last.ckpt'}: no checkpoint of a run")


def test_another_runs_checkpoint_is_refused_naming_what_differs(trained, run, tmp_path):
    train(trained / "r.toml", folder=tmp_path / "other", seed=1, rate=0.5, epochs=1)
    shutil.copy(tmp_path / "other" / "last.ckpt", run / "last.ckpt")
    message = resumption(trained, run)
    assert message.startswith(f"{run / 'last.ckpt'}: of a run with another recipe or set (")
    assert "train.rate: 0.5 -> 0.001" in message
    assert "train.seed: 1 -> 0" in message


def test_another_set_is_refused_naming_what_differs(trained, run, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    text = (trained / "r.toml").read_text().replace(str(trained), str(copy))
    (copy / "r.toml").write_text(text)
    (run / "recipe.toml").write_text((run / "recipe.toml").read_text().replace(str(trained), str(copy)))
    saved, state = read(run / "last.ckpt")
    state["recipe"]["data"]["set"] = f"folder:{copy / 'photos'}"
    write(run / "last.ckpt", saved, state)
    assert train(copy / "r.toml", folder=run, resume=True).metrics  # the same pictures elsewhere: nothing has changed
    trees.save(copy / "photos" / "masks" / "p0.png", np.zeros((32, 48), np.uint8))
    message = resumption(copy, run)
    assert "set's occurrences of each class: [" in message
    trees.save(copy / "photos" / "images" / "more.png", np.zeros((32, 48, 3), np.uint8))
    trees.save(copy / "photos" / "masks" / "more.png", np.zeros((32, 48), np.uint8))
    assert "pictures: " in resumption(copy, run)


def test_a_checkpoint_of_another_network_is_refused(trained, run):
    """As another version of a network might be."""
    saved, state = read(run / "last.ckpt")
    name = next(name for name in saved if name.startswith("learner.network") and saved[name].ndim == 4)
    write(run / "last.ckpt", {**saved, name: saved[name][:1]}, state)
    message = resumption(trained, run)
    assert "does not fit this version's network (size mismatch for" in message
    assert name.removeprefix("learner.") in message
    del state["loss_sum"]
    write(run / "last.ckpt", saved, state)
    assert "('loss_sum')" in resumption(trained, run)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"seed": 1}, ["train.seed: 0 -> 1"]),
        ({"epochs": 2, "rate": 0.5}, ["train.epochs: 1 -> 2", "train.rate: 0.001 -> 0.5"]),
        ({"network.alpha2": 2}, ["network.alpha2: 1 -> 2"]),
        ({"crop": [32, 32]}, ["augment.crop: None -> [32, 32]"]),
        ({"dice": 1.0}, ["loss.dice: 0.0 -> 1.0"]),
    ],
)
def test_another_recipe_is_refused_naming_its_fields(trained, run, overrides, named):
    message = resumption(trained, run, **overrides)
    assert message.startswith(f"{run}: the run was started with another recipe (")
    assert f"espy train {run / 'recipe.toml'} --out {run} --resume" in message
    for change in named:
        assert change in message


def test_the_fields_that_change_no_weight_may_change(trained, run):
    changed = {"workers": 1, "save_minutes": 1.0, "pictures": 1, "title": "t", "card.data": "d", "terms": "t"}
    before = (run / "last.ckpt").read_bytes()
    assert train(trained / "r.toml", folder=run, resume=True, **changed).metrics
    assert (run / "last.ckpt").read_bytes() == before
    assert 'title = "t"' in (run / "recipe.toml").read_text()


def test_its_own_recipe_resumes_a_run_whatever_the_networks_choices(trained, run):
    """The resolved recipe, read back, is the one that was resolved: lists of a network's choices too."""
    assert "widths = [8, 16, 24]" in (run / "recipe.toml").read_text()
    assert train(run / "recipe.toml", folder=run, resume=True).metrics
