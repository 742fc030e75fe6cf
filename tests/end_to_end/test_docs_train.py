"""What docs/train.md says of training holds. Its table of fields is held by docs/tables.py, its links by test_readme."""

import contextlib
import io
import re
import shlex

import pytest
import torch
from test_readme import ROOT, blocks, run

from espy.data.kinds import open_set
from espy.learn.recipe import from_dict
from espy.learn.sets import open_sets
from espy.learn.suggest import pictures_a_second
from espy.learn.tasks import TASKS
from trees import folder

GUIDE = "docs/train.md"
TINY = """\
network = {network = "espnet", widths = [8, 16, 24], branches = 2, alpha2 = 1, alpha3 = 1}
data = {set = "folder:photos", size = [32, 32]}
train = {threads = 1}
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The guide's Python run in a folder with a set and a small recipe: the folder, and what was printed."""
    root, out, threads = tmp_path_factory.mktemp("guide"), io.StringIO(), torch.get_num_threads()
    folder(root / "photos")
    (root / "my.toml").write_text(TINY)
    with contextlib.chdir(root), contextlib.redirect_stdout(out):
        run(GUIDE)
    torch.set_num_threads(threads)
    return root, out.getvalue().splitlines()


def test_its_python_runs(followed):
    _, (best, miou, labels) = followed
    assert best == "runs/look/best.safetensors"
    assert 0 <= float(miou) <= 1
    assert labels == "['background', 'disc', 'box']"


def test_its_table_of_a_runs_folder_names_what_lies_there(followed):
    root, _ = followed
    table = (ROOT / GUIDE).read_text("utf-8").partition("| file | what it is |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    there = [path.name for path in (root / "runs" / "look").iterdir() if not path.name.startswith(".")]
    assert sorted(named) == sorted(there)


def test_its_first_lines_are_the_readmes():
    (readme,) = [block for block in blocks("README.md", "sh") if "espy recipe" in block]
    first = blocks(GUIDE, "sh")[0]
    calls = [[shlex.split(line, comments=True) for line in block.splitlines()] for block in (readme, first)]
    assert calls[1][: len(calls[0])] == calls[0]


def test_fields_in_its_calls_are_fields_of_a_recipe():
    base = {"network": {"network": "espnetv2"}, "data": {"set": "folder:photos"}}
    calls = [shlex.split(line, comments=True) for block in blocks(GUIDE, "sh") for line in block.splitlines()]
    fields = [[word for word in call[3:] if "=" in word] for call in calls if call[1] == "train"]
    assert sum(map(len, fields)) >= 4
    for overrides in fields:
        assert from_dict(base, overrides) != from_dict(base) or not overrides


def test_its_speeds_are_those_that_hours_are_reckoned_from():
    text = (ROOT / GUIDE).read_text("utf-8")
    rows = re.findall(
        r"^\| (\w+), (?:crops of )?(\d+) x (\d+), batch (\d+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE
    )
    tasks = {"masks": "segment", "classes": "classify", "boxes": "detect"}
    assert [row[0] for row in rows] == [*tasks]
    for truth, height, width, batch, fast, slow in rows:
        network = {"network": "espnetv2", "task": tasks[truth]}
        data, train = {"set": "folder:photos", "size": [int(height), int(width)]}, {"batch": int(batch)}
        speed = pictures_a_second(from_dict({"network": network, "data": data, "train": train}))
        assert float(fast) == pytest.approx(speed, rel=0.03)
        assert float(slow) == pytest.approx(speed / TASKS[tasks[truth]].float32, rel=0.03)


def test_held_out_pictures_validate_instead_of_val(followed):
    root, _ = followed
    recipe = from_dict(
        {"network": {"network": "espnet"}, "data": {"set": f"folder:{root / 'photos'}"}}, ['hold_out=["p0*"]']
    )
    sets = open_sets(recipe.data)
    train = {item.picture.name for item in open_set(recipe.data.set, "train").items}
    assert {item.picture.name for item in sets.validate.items} == {"p0.jpg"} <= train
    assert {item.picture.name for item in sets.train.items} == train - {"p0.jpg"}
