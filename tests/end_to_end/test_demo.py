"""`espy demo` shows what the bundled models see, beside the figures to expect."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ESPY = Path(sys.executable).with_name("espy")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [str(ESPY), "demo", "--out", "out"], cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )
    return done, folder / "out"


def test_the_demo_finds_what_it_expects(demo):
    done, _ = demo
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if re.match(r"\S+\.jpg", line)]
    assert len(rows) >= 4
    for row in rows:
        assert "(as found)" in row
        assert re.search(r"\b(street|objects)\b", row)
        assert re.search(r"\d+ x \d+", row)
        assert re.search(r"\w+ \d+ %", row)
    assert "NOT" not in done.stdout
    assert {"street", "objects"} == {re.search(r"\b(street|objects)\b(?!_)", row)[1] for row in rows if row}


def test_the_demo_says_where_the_pictures_lie_and_they_lie_there(demo):
    done, out = demo
    assert "out/" in done.stdout
    stems = {line.split(".jpg")[0] for line in done.stdout.splitlines() if re.match(r"\S+\.jpg", line)}
    for stem in stems:
        with Image.open(out / f"{stem}.overlay.jpg") as overlay, Image.open(out / f"{stem}.mask.png") as mask:
            assert overlay.size == mask.size
            assert mask.mode == "P"
        assert json.loads((out / f"{stem}.json").read_text())["task"] == "segment"
    assert len(list(out.iterdir())) == 3 * len(stems)


def test_the_demo_may_be_run_again(demo):
    _, out = demo
    done = subprocess.run(
        [str(ESPY), "demo", "--out", str(out)], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
