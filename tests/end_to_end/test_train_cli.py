"""`espy train` as a user meets it: what it says while it trains, what it prints, and that its words can be followed."""

import json
import re
from pathlib import Path

import pytest
from test_check_cli import on_a_terminal

from espy.learn.profile import STAGES, profile
from espy.learn.recipe import read_recipe
from runs import ESPNETV2, recipe
from samples import one_line
from trees import clear_shapes, coloured_folders


@pytest.fixture
def here(tmp_path):
    """mine.toml and its pictures, photos/: 8 to train on, 2 to validate on."""
    clear_shapes(tmp_path / "photos", pairs=10, height=32, width=48)
    recipe(tmp_path / "mine.toml", "photos", train={"epochs": 3, "batch": 4})


def test_it_says_an_epoch_a_line_and_what_to_do_next(espy, here):
    outcome = espy("train", "mine.toml")
    assert outcome.code == 0, outcome
    form = r"epoch (\d)/3, step (\d)/6, loss \d\.\d{4}(, mIoU \d+\.\d\d %)?, \d+\.\d images/s, left 0:\d\d:\d\d"
    said = [re.fullmatch(form, line).group(1, 2) for line in outcome.err.splitlines()]
    assert said == [("1", "1"), ("2", "3"), ("3", "5"), ("3", "6")]
    result, advice = outcome.out.splitlines()
    assert re.fullmatch(r"mIoU \d+\.\d\d % at best, runs/mine/best\.safetensors", result)
    assert advice == "deploy it: espy export runs/mine/best.safetensors --to onnx -o MODEL.onnx"
    again = one_line(espy("train", "mine.toml"))
    assert again == "espy: runs/mine: holds a run already: continue it with --resume, or choose another --out\n"


def test_espy_eval_of_the_kept_files_gives_exactly_the_logged_figures(espy, here, tmp_path):
    assert espy("train", "mine.toml", "rate=0.02", "epochs=5", "--out", "run").code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len({line["miou"] for line in lines}) > 1
    best = max(lines, key=lambda line: line["miou"])
    for file, line in (("best", best), ("last", lines[-1])):
        outcome = espy("eval", f"run/{file}.safetensors", "folder:photos", "--json")
        assert outcome.code == 0, outcome
        printed = json.loads(outcome.out)
        for name in ("miou", "pixel_accuracy", "class_accuracy"):
            assert round(printed[name], 6) == line[name]
        assert {name: round(value, 6) for name, value in printed["iou"].items()} == line["iou"]


def test_to_resume_what_is_not_there_is_said_to_begin(espy, here):
    outcome = espy("train", "mine.toml", "epochs=1", "--out", "rums", "--resume")
    assert outcome.code == 0, outcome
    said = "rums: holds no checkpoint to go on from: starts with the first step\n"
    assert outcome.err.startswith(said)
    assert said not in espy("train", "mine.toml", "epochs=1", "--out", "rums", "--resume").err


def test_names_that_are_no_unicode_are_shown_with_a_sign_for_each_byte(espy, here):
    assert "runs\ufffd/best.safetensors" in espy("train", "mine.toml", "epochs=1", "--out", "runs\udcff").out
    assert "written: a\ufffd.toml" in espy("recipe", "folder:photos", "-o", "a\udcff.toml", "--network", "espnet").out


def test_show_prints_a_recipe_that_is_followed_again(espy, here, tmp_path):
    outcome = espy("train", "mine.toml", "epochs=2", "--show")
    assert (outcome.code, outcome.err) == (0, "")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "shown.toml").write_text(outcome.out)
    assert read_recipe("shown.toml") == read_recipe("mine.toml", ["epochs=2"])
    assert espy("train", "shown.toml", "epochs=1").code == 0


def test_profile_accounts_for_the_whole_time_and_keeps_nothing(espy, here, tmp_path):
    outcome = espy("train", "mine.toml", "accumulate=2", "auxiliary=0.4", "--profile")
    assert outcome.code == 0, outcome
    assert "6 steps of 4 pictures, height 32, width 48, on cpu with 1 threads" in outcome.out
    shares = {name: float(share) for name, share in re.findall(r"^([a-z ]+?) +[\d.]+ +([\d.]+)%$", outcome.out, re.M)}
    assert set(shares) == {"waiting for pictures", *STAGES, "the rest"}
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert min(shares["forward"], shares["backward"]) > 1
    assert "aten::" in outcome.out
    assert {path.name for path in tmp_path.iterdir()} == {"mine.toml", "photos"}


def test_profile_takes_the_task_from_the_recipe(espy):
    coloured_folders(Path("animals"), 1)
    data = {"set": "imagefolder:animals", "size": [64, 64], "multiple": 32}
    recipe("mine.toml", "animals", {**ESPNETV2, "task": "classify"}, data=data)
    assert "steps of 2 pictures, height 64, width 64" in profile(read_recipe("mine.toml"), steps=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("none.toml",), "none.toml: cannot be read"), (("mine.toml", "epoch=3"), "did you mean 'epochs'?"),
        (("mine.toml", "epochs"), "write key=value"), (("mine.toml", "set=folder:none"), "none: no such folder"),
        (("mine.toml", "init=street"), "it holds espnetv2"), ((), "Missing argument"),
    ],
    ids=str,
)  # fmt: skip
def test_a_call_that_cannot_work_is_one_line_and_exits_2(espy, here, arguments, says):
    assert says in one_line(espy("train", *arguments))


def test_a_bar_on_a_terminal_shows_epoch_loss_and_speed(here, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", on_a_terminal("train", "mine.toml", cwd=tmp_path))
    last = shown.replace("\r", "\n").strip().splitlines()[-1]
    assert re.search(r"epoch 3/3 .* 6/6 loss \d\.\d{4}, mIoU \d+\.\d\d %, \d+\.\d images/s .*left 0:00:00", last), shown
