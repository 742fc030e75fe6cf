"""The command line as a user meets it: what it writes, what it says, with which exit code it ends."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from espy import bundle
from espy.header import read_safetensors
from espy.labels import CITYSCAPES
from samples import BADINPUT, PHOTO, WEIGHTS, Outcome, needs, noise, one_line, scene

ESPY = Path(sys.executable).with_name("espy")
STAGES = ("decode", "prepare", "engine", "finish", "write")


@pytest.fixture
def predict(espy, tiny_onnx):
    """`espy predict` with a tiny network."""
    return lambda *arguments: espy("predict", *arguments, "--model", tiny_onnx)


def spawn(*arguments, **keywords):
    """Runs the installed command as a process of its own."""
    done = subprocess.run([str(ESPY), *map(str, arguments)], capture_output=True, check=False, timeout=120, **keywords)
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def picture(path, height=24, width=40, seed=0):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(height, width, seed)).save(path)
    return path


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def three(*stems):
    return sorted(f"{stem}{ending}" for stem in stems for ending in (".overlay.jpg", ".mask.png", ".json"))


# Files in, files out


def test_each_picture_gets_overlay_mask_and_json(predict, tmp_path):
    picture("a.png", 30, 50)
    outcome = predict("a.png", "--out", "results")
    assert outcome.code == 0
    assert files("results") == three("a")
    with Image.open("results/a.mask.png") as mask, Image.open("results/a.overlay.jpg") as overlay:
        assert (mask.mode, mask.size) == ("P", (50, 30))
        assert (overlay.format, overlay.mode, overlay.size) == ("JPEG", "RGB", (50, 30))
        counts = np.bincount(np.asarray(mask).ravel(), minlength=4) / 1500
    data = json.loads(Path("results/a.json").read_text("utf-8"))
    assert data["source"] == "a.png"
    assert data["size"] == [30, 50]
    assert np.allclose(list(data["shares"].values()), counts, atol=1e-6)
    assert {Path(p).name for p in data["output"].values()} == set(three("a"))


def test_the_default_output_folder_is_out(predict):
    picture("a.png")
    assert predict("a.png").code == 0
    assert files("out") == three("a")


def test_a_folder_is_searched_whole_without_hidden_files_and_earlier_results(predict):
    for name in ("in/a.png", "in/deep/er/b.JPG", "in/c.webp", "in/.hidden.png", "in/.cache/d.png", "in/._e.jpg"):
        picture(name) if not name.endswith("._e.jpg") else Path(name).write_bytes(b"resource fork")
    Path("in/notes.txt").write_text("no picture")
    Path("in/Thumbs.db").write_bytes(b"\0" * 512)
    Path("in/folder.jpg").mkdir()
    assert predict("in", "--out", "in/results").code == 0
    assert files("in/results") == three("a", "c", "deep/er/b")
    assert predict("in", "--out", "in/results", "--force").code == 0
    assert files("in/results") == three("a", "c", "deep/er/b")


def test_results_may_go_to_a_folder_that_holds_the_pictures_folder(predict):
    picture("photos/a.png")
    outcome = predict("photos", "--out", ".")
    assert outcome.code == 0, outcome
    assert set(three("a")) <= set(files("."))


def test_results_may_lie_beside_the_pictures(predict):
    picture("a.png")
    assert predict("a.png", "--out", ".").code == 0
    assert files(".") == sorted(["a.png", *three("a")])


def test_a_pattern_is_expanded_and_keeps_the_folders_after_its_first_wildcard(predict):
    for name in ("trips/rome/1.png", "trips/oslo/1.png", "trips/rome/2.jpg"):
        picture(name)
    assert predict("trips/*/1.png", "--out", "o").code == 0
    assert files("o") == three("oslo/1", "rome/1")
    assert predict("trips/**/*.jpg", "--out", "o2").code == 0
    assert files("o2") == three("rome/2")


def test_a_name_with_brackets_is_a_file_first_and_a_pattern_second(predict):
    picture("photo[1].png")
    picture("photo1.png")
    assert predict("photo[1].png", "--out", "o").code == 0
    assert files("o") == three("photo[1]")


@pytest.mark.parametrize(
    "name",
    [
        "holiday [final].png",
        "[red].png",
        "straße 日本 (copy) é.png",
        "-dash.png",
        "a b  c.png",
        "a.b.c.png",
        "%s{}.png",
    ],
)
def test_odd_names_are_done_and_shown_as_they_are(predict, name):
    picture(name)
    outcome = predict(f"./{name}" if name.startswith("-") else name, "--out", "o")
    assert outcome.code == 0, outcome
    assert files("o") == three(name.removesuffix(".png"))
    assert name in outcome.out


def test_names_that_are_no_unicode_are_done(tmp_path, tiny_onnx):
    picture(tmp_path / "in/a.png")
    shutil.copy(tmp_path / "in/a.png", os.fsencode(tmp_path) + b"/in/caf\xe9.png")
    for extra in ([], ["--json"]):
        outcome = spawn("predict", "in", "--model", tiny_onnx, "--out", f"o{len(extra)}", *extra, cwd=tmp_path)
        assert outcome.code == 0, outcome
        assert len(files(tmp_path / f"o{len(extra)}")) == 6


def test_the_longest_name_that_fits_is_written(predict):
    name = "é" * 118  # 236 bytes, with .overlay.jpg 248 of 255
    picture(f"{name}.png")
    outcome = predict(f"{name}.png", "--out", "o")
    assert outcome.code == 0, outcome
    assert files("o") == three(name)


def test_a_picture_from_standard_input_is_called_stdin(tmp_path, tiny_onnx):
    outcome = spawn("predict", "-", "--model", tiny_onnx, "--out", "o", cwd=tmp_path, input=PHOTO.read_bytes())
    assert outcome.code == 0, outcome
    assert files(tmp_path / "o") == three("stdin")
    assert json.loads((tmp_path / "o/stdin.json").read_text())["size"] == [576, 768]


def test_an_empty_standard_input_is_refused_by_a_name_the_user_knows(tmp_path, tiny_onnx):
    outcome = spawn("predict", "-", "--model", tiny_onnx, "--out", "o", cwd=tmp_path, input=b"")
    assert outcome.code == 2
    assert re.search(r"stdin|standard input|espy: -:", outcome.err), outcome


def test_an_empty_name_is_no_folder(predict):
    picture("private.png")
    outcome = predict("", "--out", "o")
    assert outcome.code == 2
    assert not Path("o").exists()


def test_a_picture_given_twice_is_done_once(predict):
    picture("a/p.png")
    outcome = predict("a/p.png", "a/../a/p.png", "a", "--out", "o", "--json")
    assert outcome.code == 0
    assert len(json.loads(outcome.out)["results"]) == 1


def test_an_upright_phone_photo_stays_upright_in_every_output(predict):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(24, 40)).save("p.jpg", exif=exif)
    Image.fromarray(scene(24, 40)).save("p2.webp", exif=exif, lossless=True)
    for view in ("overlay", "side"):
        assert predict("p.jpg", "p2.webp", "--out", view, "--view", view).code == 0
    for name in ("p.overlay.jpg", "p2.overlay.jpg"):
        with Image.open(Path("overlay", name)) as overlay:
            assert ImageOps.exif_transpose(overlay).size == (24, 40)
    with Image.open("overlay/p.mask.png") as mask:
        assert mask.size == (24, 40)


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (1, 70_000)])
def test_any_size_from_one_pixel_is_done(predict, size):
    height, width = size
    Image.fromarray(noise(height, width)).save("p.png")
    outcome = predict("p.png", "--out", "o")
    assert outcome.code == 0, outcome
    with Image.open("o/p.mask.png") as mask:
        assert mask.size == (width, height)


# Names that meet


def test_two_endings_of_one_name_are_told_apart_by_them(predict):
    picture("photo.png")
    picture("photo.jpg")
    picture("other.png")
    assert predict("photo.png", "photo.jpg", "other.png", "--out", "o").code == 0
    assert files("o") == three("other", "photo.jpg", "photo.png")
    for name in ("photo.png", "photo.jpg"):
        assert json.loads(Path(f"o/{name}.json").read_text())["source"] == name


def test_one_name_in_two_folders_gives_two_results(predict):
    picture("a/p.png", 20, 20, seed=1)
    picture("b/p.png", 20, 30, seed=2)
    assert predict("a/p.png", "b/p.png", "--out", "o").code == 0
    found = files("o")
    assert len(found) == 6
    sources = {json.loads(Path("o", f).read_text())["source"] for f in found if f.endswith(".json")}
    assert sources == {"a/p.png", "b/p.png"}


def test_two_folders_of_the_same_names_give_all_results(predict):
    for folder in "ab":
        for name in ("x.png", "y.png", "deep/x.png"):
            picture(f"{folder}/{name}")
    assert predict("a", "b", "--out", "o").code == 0
    assert len(files("o")) == 18


def test_names_that_differ_in_capitals_alone_do_not_meet_on_any_disk(predict):
    picture("a/photo.png")
    picture("b/PHOTO.png")
    picture("c/Photo.JPG")
    assert predict("a/photo.png", "b/PHOTO.png", "c/Photo.JPG", "--out", "o").code == 0
    found = files("o")
    assert len(found) == len({name.lower() for name in found}) == 9


def test_a_picture_called_like_a_numbered_one_keeps_its_result(predict):
    for name in ("a/p.png", "b/p.png", "c/p.png", "c/p.png-2.png"):
        picture(name)
    assert predict("a/p.png", "b/p.png", "c/p.png", "c/p.png-2.png", "--out", "o").code == 0
    assert len(files("o")) == 12


# Nothing is overwritten


def test_existing_results_are_kept_without_force_and_nothing_is_done(predict):
    picture("a.png")
    picture("b.png")
    Path("o").mkdir()
    Path("o/b.json").write_text("mine")
    message = one_line(predict("a.png", "b.png", "--out", "o"))
    assert "o/b.json" in message
    assert "--force" in message
    assert files("o") == ["b.json"]
    assert Path("o/b.json").read_text() == "mine"


def test_force_replaces_results(predict):
    picture("a.png")
    assert predict("a.png", "--out", "o").code == 0
    Path("o/a.json").write_text("old")
    assert predict("a.png", "--out", "o", "--force").code == 0
    assert json.loads(Path("o/a.json").read_text())["source"] == "a.png"


def test_a_picture_is_never_overwritten_even_with_force(predict):
    picture("a.png")
    picture("a.overlay.jpg")
    before = Path("a.overlay.jpg").read_bytes()
    message = one_line(predict("a.png", "a.overlay.jpg", "--out", ".", "--force"))
    assert "a.overlay.jpg" in message
    assert Path("a.overlay.jpg").read_bytes() == before


def test_a_picture_named_through_a_link_is_not_overwritten(predict):
    picture("real/a.mask.png")
    picture("a.png")
    Path("link").symlink_to("real")
    before = Path("real/a.mask.png").read_bytes()
    one_line(predict("a.png", "link/a.mask.png", "--out", "real", "--force"))
    assert Path("real/a.mask.png").read_bytes() == before


def test_an_output_folder_that_is_a_file_is_refused_in_one_line(predict):
    picture("a.png")
    Path("o").write_text("a file")
    outcome = predict("a.png", "--out", "o")
    assert outcome.code == 2
    assert "o" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
    assert Path("o").read_text() == "a file"


def test_a_folder_where_a_result_should_go_is_refused(predict):
    picture("a.png")
    Path("o/a.mask.png").mkdir(parents=True)
    for extra in ((), ("--force",)):
        assert "a.mask.png" in one_line(predict("a.png", "--out", "o", *extra))


# One bad file among many


def test_one_bad_file_among_many_is_named_and_the_rest_is_done(predict):
    picture("a.png")
    Path("b.jpg").write_bytes(b"<html>")
    picture("c.png")
    outcome = predict("a.png", "b.jpg", "missing.png", "c.png", "--out", "o")
    assert outcome.code == 1
    assert files("o") == three("a", "c")
    errors = [line for line in outcome.err.splitlines() if line.startswith("espy: ")]
    assert len(errors) == 2
    assert "b.jpg" in errors[0]
    assert "missing.png: no such file" in errors[1]


def test_bad_files_alone_end_in_an_error(predict):
    Path("a.jpg").write_bytes(b"")
    outcome = predict("a.jpg", "missing.png", "--out", "o")
    assert outcome.code == 2
    assert "a.jpg" in outcome.err
    assert "missing.png" in outcome.err
    assert not Path("o").exists()


def test_a_loop_of_links_is_one_bad_file(predict):
    picture("a.png")
    Path("loop.png").symlink_to("loop.png")
    outcome = predict("loop.png", "a.png", "--out", "o")
    assert outcome.code == 1, outcome
    assert "a fault of espy" not in outcome.err
    assert files("o") == three("a")


def test_a_name_too_long_for_any_disk_is_one_bad_file(predict):
    picture("a.png")
    outcome = predict("x" * 300 + ".png", "a.png", "--out", "o")
    assert outcome.code == 1, outcome
    assert files("o") == three("a")


def test_a_folder_or_pattern_without_pictures_is_refused(predict):
    Path("empty").mkdir()
    Path("empty/.hidden.png").write_bytes(b"")
    assert "empty: no pictures" in one_line(predict("empty"))
    assert "none*.png" in one_line(predict("none*.png"))


@needs(BADINPUT)
def test_the_folder_of_bad_input_is_done_as_its_manifest_says(tmp_path):
    entries = json.loads((BADINPUT / "manifest.json").read_text("utf-8"))["files"]
    sources = [str(BADINPUT / e["file"]) for e in entries if e["file"] != "folder.jpg"]
    outcome = spawn(
        "predict",
        *sources,
        "--model",
        "street-small",
        "--size",
        "64x96",
        "--out",
        tmp_path / "o",
        "--json",
        cwd=tmp_path,
    )
    assert outcome.code == 1
    data = json.loads(outcome.out)
    done = {Path(r["source"]).name: r for r in data["results"]}
    failed = {Path(e["source"]).name: e["error"] for e in data["errors"]}
    assert len(done) + len(failed) == len(sources)
    for entry in entries:
        name = entry["file"]
        if entry["expect"] == "read":
            assert name in done, failed.get(name)
            assert done[name]["size"] == entry["upright_size"][::-1]
            for path in done[name]["output"].values():
                assert Path(path).is_file()
        elif entry["expect"] == "refuse" and name != "folder.jpg":
            assert name in failed
            assert name in failed[name]
            assert [line for line in outcome.err.splitlines() if line.startswith("espy: ") and f"/{name}:" in line]
        if entry.get("frames", 1) > 1:
            assert "first of 3" in done[name]["note"]
    assert "Traceback" not in outcome.err
    assert "Warning" not in outcome.err


@needs(BADINPUT)
def test_a_search_of_the_folder_of_bad_input_leaves_hidden_and_system_files_out(predict):
    outcome = predict(BADINPUT, "--out", "o", "--json")
    data = json.loads(outcome.out)
    seen = {Path(item["source"]).name for item in data["results"] + data["errors"]}
    assert outcome.code == 1
    assert not seen & {"._photo.jpg", "Thumbs.db", "folder.jpg", "manifest.json", "README.md", "keep.txt"}
    assert {"plain.jpg", "PHOTO.JPG", "truncated.jpg", "straße 日本 (copy) é.jpg"} <= seen


# What is printed


def test_json_prints_one_object_of_the_contract_and_nothing_else(predict):
    picture("a.png", 20, 30)
    picture("b.png", 40, 30)
    Path("c.jpg").write_bytes(b"")
    outcome = predict("a.png", "b.png", "c.jpg", "--out", "o", "--json", "--profile")
    assert outcome.code == 1
    assert outcome.out.count("\n") == 1
    data = json.loads(outcome.out)
    assert set(data) == {"espy", "command", "results", "errors"}
    assert (data["espy"], data["command"]) == (1, "predict")
    assert [r["source"] for r in data["results"]] == ["a.png", "b.png"]
    for result, size in zip(data["results"], ([20, 30], [40, 30]), strict=True):
        assert set(result) == {"source", "output", "size", "task", "shares", "timing"}
        assert result["size"] == size
        assert result["task"] == "segment"
        assert abs(sum(result["shares"].values()) - 1) < 1e-4
        assert set(result["output"]) == {"overlay", "mask", "json"}
        assert all(Path(path).is_file() for path in result["output"].values())
        assert set(result["timing"]) == set(STAGES)
        assert all(ms >= 0 for ms in result["timing"].values())
    assert [set(e) for e in data["errors"]] == [{"source", "error"}]
    assert data["errors"][0]["source"] == "c.jpg"


def test_json_of_bad_files_alone_is_an_object_too(predict):
    Path("c.jpg").write_bytes(b"")
    outcome = predict("c.jpg", "--json")
    assert outcome.code == 2
    data = json.loads(outcome.out)
    assert data["results"] == []
    assert len(data["errors"]) == 1


def test_results_go_to_stdout_and_remarks_to_stderr(predict):
    picture("a.png")
    outcome = predict("a.png", "--out", "o")
    assert "a.png" in outcome.out
    assert "24 x 40" in outcome.out
    assert "%" in outcome.out
    assert "onnxruntime" in outcome.err
    assert "onnxruntime" not in outcome.out


@pytest.mark.parametrize(
    ("view", "endings"),
    [
        ("overlay", [".json", ".mask.png", ".overlay.jpg"]),
        ("mask", [".json", ".mask.png"]),
        ("side", [".json", ".mask.png", ".side.jpg"]),
    ],
)
def test_a_view_decides_what_lies_beside_the_mask(predict, view, endings):
    picture("a.png", 24, 30)
    assert predict("a.png", "--out", "o", "--view", view).code == 0
    assert files("o") == [f"a{ending}" for ending in endings]
    if view == "side":
        with Image.open("o/a.side.jpg") as side:
            assert side.size == (60, 24)
            left = np.asarray(side.crop((0, 0, 30, 24))).astype(int)
        assert np.abs(left - scene(24, 30)).mean() < 8


def test_profile_says_where_the_time_goes(predict):
    picture("a.png")
    outcome = predict("a.png", "--out", "o", "--profile")
    rows = {line.split()[0]: line.split()[1:] for line in outcome.err.splitlines() if line.split()[0] in STAGES}
    assert list(rows) == list(STAGES)
    shares = [float(row[-1].rstrip("%")) for row in rows.values()]
    assert abs(sum(shares) - 100) < 1
    assert float(rows["engine"][0]) > 0


def test_a_size_is_height_x_width_and_echoed_so(predict):
    picture("a.png", 40, 40)
    outcome = predict("a.png", "--out", "o", "--size", "48x112")
    assert outcome.code == 0
    assert "height 48, width 112" in outcome.err


def test_the_size_of_the_model_is_echoed_too(espy):
    picture("a.png")
    assert "height 512, width 1024" in espy("predict", "a.png", "--model", "street-small").err


def test_native_size_gives_the_mask_of_the_network_at_the_pictures_own_size(predict, tiny_onnx):
    from espy import load

    picture("a.png", 75, 131)
    assert predict("a.png", "--out", "o", "--size", "native").code == 0
    expected = load(tiny_onnx, size=(75, 131))("a.png").mask
    with Image.open("o/a.mask.png") as mask:
        assert np.array_equal(np.asarray(mask), expected)


def test_tiles_are_echoed_and_cover_the_picture(predict):
    picture("a.png", 300, 420)
    outcome = predict("a.png", "--out", "tiled", "--tile", "192x256", "--overlap", "96")
    assert "tiles of height 192, width 256, overlap 96" in outcome.err
    assert predict("a.png", "--out", "whole", "--size", "native").code == 0
    with Image.open("tiled/a.mask.png") as tiled, Image.open("whole/a.mask.png") as whole:
        assert np.array_equal(np.asarray(tiled), np.asarray(whole))


def test_a_batch_gives_what_single_pictures_give(predict):
    for k in range(5):
        picture(f"in/{k}.png", 40 + k, 50, seed=k)
    assert predict("in", "--out", "one").code == 0
    assert predict("in", "--out", "many", "--batch", "3").code == 0
    assert files("one") == files("many")
    for name in files("one"):
        if name.endswith(".png"):
            assert Path("one", name).read_bytes() == Path("many", name).read_bytes()


def test_a_street_is_seen_as_a_street(espy):
    outcome = espy("predict", bundle.FOLDER / "photos" / "china.jpg", "--out", "o", "--json")
    shares = json.loads(outcome.out)["results"][0]["shares"]
    assert set(shares) == {label.name for label in CITYSCAPES}
    assert min(shares["sky"], shares["vegetation"], shares["building"]) > 0.2
    with Image.open("o/china.mask.png") as mask:
        palette = np.reshape(mask.getpalette(), (-1, 3))
        assert palette[10].tolist() == [70, 130, 180]  # sky
        assert CITYSCAPES[mask.getpixel((320, 5))].name == "sky"


# Calls that cannot work


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["predictt", "a.png"], "predict"), (["tarin"], "No such command"), (["--nope"], "--nope"), (["predict"], "SOURCE"),
        (["predict", "a.png", "--nope"], "--nope"), (["predict", "a.png", "--size", "512"], "512x1024"),
        (["predict", "a.png", "--size", "0x64"], "HEIGHTxWIDTH"), (["predict", "a.png", "--size", "-1x64"], "HEIGHTxWIDTH"),
        (["predict", "a.png", "--tile", "native"], "--tile"), (["predict", "a.png", "--view", "ovrlay"], "overlay"),
        (["predict", "a.png", "--threads", "0"], "--threads"), (["predict", "a.png", "--max-pixels", "many"], "--max-pixels"),
        (["predict", "a.png", "--batch", "0"], "--batch"), (["predict", "a.png", "--model", "nope"], "street-small"),
        (["predict", "a.png", "--model", "street-small", "--engine", "onnxrutime"], "onnxruntime"),
        (["predict", "a.png", "--model", "street-small", "--precision", "float16"], "float32"),
        (["predict", "a.png", "--model", "street-small", "--size", "100x100"], "multiples of 32"),
        (["predict", "a.png", "--model", "street-small", "--tile", "100x100"], "multiples of 32"),
        (["predict", "a.png", "--model", "street-small", "--tile", "64x64", "--overlap", "5"], "overlap"),
        (["predict", "a.png", "--model", "street-small", "--header", "none.json"], "none.json"),
        (["predict", "a.png", "--model", "a.png"], "a.png"), (["predict", "a.png", "--model", "empty.onnx"], "empty.onnx"),
        (["convert"], "PUBLISHED"), (["convert", "none.pth"], "none.pth"), (["convert", "a.png"], "a.png"),
        (["convert", "a.png", "-o", "m.onnx"], ".safetensors"), (["models", "stret"], "street"),
        (["export", "street-small", "--to", "onyx", "-o", "m.onnx"], "onnx"),
        (["export", "street-small", "--size", "native"], "--size"),
        (["export", "street-small", "--size", "8x8", "-o", "m.onnx"], "multiples of 32"),
        (["export", "none.safetensors"], "none.safetensors"),
        (["demo", "--out"], "--out"), (["demo", "more"], "more"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_call_that_cannot_work_ends_with_2_and_one_line(espy, arguments, says):

    picture("a.png")
    Path("empty.onnx").write_bytes(b"")
    outcome = espy(*arguments)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    line = outcome.err.splitlines()[-1]
    assert line.startswith("espy: ")
    assert says in line
    assert "a fault of espy" not in line
    assert "Traceback" not in outcome.err
    assert len([part for part in outcome.err.splitlines() if part.startswith("espy: ")]) == 1
    assert files(".") == ["a.png", "empty.onnx"]


def test_the_bare_command_shows_its_help_as_help():
    outcome = spawn()
    assert "predict" in outcome.out + outcome.err
    assert (outcome.out + outcome.err).count("\n") > 5
    assert outcome.code in (0, 2)


@pytest.mark.parametrize("verb", ["predict", "convert", "export", "models", "demo"])
def test_every_verb_explains_itself_with_an_example(espy, verb):
    outcome = espy(verb, "--help")
    assert outcome.code == 0
    assert f"Example: espy {verb}" in outcome.out
    assert outcome.err == ""


def test_debug_shows_the_traceback_and_nothing_else_does(tmp_path):
    assert "Traceback" not in spawn("predict", "none*.png", cwd=tmp_path).err
    assert "Traceback" in spawn("predict", "none*.png", "--debug", cwd=tmp_path).err


def test_a_huge_size_is_refused_before_the_memory_is_gone(tmp_path):
    picture(tmp_path / "a.png")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)); from espy.cli import main;"
        "main(['predict', 'a.png', '--model', 'street-small', '--size', '99968x99968'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 2
    assert "a fault of espy" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error(tmp_path):
    done = subprocess.run(f"{ESPY} models street | true", shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


# Interrupted


@pytest.fixture
def many(tmp_path):
    """A folder of 60 pictures that take a while."""
    (tmp_path / "in").mkdir()
    for k in range(60):
        os.link(
            shutil.copy(bundle.FOLDER / "photos" / "china.jpg", tmp_path / "china.jpg")
            if k == 0
            else tmp_path / "china.jpg",
            tmp_path / f"in/{k:02}.jpg",
        )
    return tmp_path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_leaves_whole_files_only(many, number, code):
    command = [str(ESPY), "predict", "in", "--model", "street-small", "--out", "o", "--threads", "1"]
    running = subprocess.Popen(command, cwd=many, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list((many / "o").glob("*.json")) if (many / "o").is_dir() else []) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(number)
    _, err = running.communicate(timeout=30)
    assert running.returncode == code
    assert "Traceback" not in err
    found = list((many / "o").iterdir())
    assert 15 <= len(found) < 180  # some done, not all
    for path in found:
        assert path.suffix in (".jpg", ".png", ".json"), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with Image.open(path) as image:
                image.load()


# A terminal and a pipe


def test_a_pipe_sees_no_progress_bar(tmp_path, tiny_onnx):
    for k in range(3):
        picture(tmp_path / f"in/{k}.png")
    outcome = spawn("predict", "in", "--model", tiny_onnx, "--out", "o", cwd=tmp_path)
    assert outcome.code == 0
    assert "\x1b" not in outcome.out + outcome.err
    assert "\r" not in outcome.out + outcome.err
    assert "images/s" not in outcome.err


def on_terminal(command, cwd):
    """Exit code, stdout, and what a terminal on stderr shows."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
    running = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        ready, _, _ = select.select([master], [], [], 60)
        try:
            part = os.read(master, 65536) if ready else b""
        except OSError:  # the other end is closed
            part = b""
        if not part:
            break
        shown += part
    out = running.communicate(timeout=30)[0].decode()
    os.close(master)
    return running.returncode, out, shown.decode()


def test_a_terminal_sees_files_images_a_second_and_time_left(tmp_path):
    for k in range(12):
        shutil.copy(PHOTO, tmp_path / f"[{k}] photo.jpg")
    command = [str(ESPY), "predict", ".", "--model", "street-small", "--out", "o", "--json"]
    code, out, shown = on_terminal(command, tmp_path)
    assert code == 0, shown
    assert len(json.loads(out)["results"]) == 12
    assert re.search(r"\d+/12", shown)
    assert re.search(r"\d+\.\d images/s", shown)
    assert re.search(r"\d:\d\d:\d\d", shown)


# convert and models


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])
sys.meta_path.insert(0, Block())
from espy.cli import main
main()
"""


def without(names, *arguments, **keywords):
    """Runs the command where some packages are not installed."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(names=names), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120, **keywords,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


@needs(WEIGHTS)
def test_a_published_checkpoint_is_converted_without_torch(tmp_path):
    outcome = without(
        ["torch", "onnx", "onnxruntime", "openvino"], "convert", WEIGHTS / "espnetv2_seg_s0.5_city_1024x512.pth",
        "-o", "m.safetensors", cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert "tiny weights" in outcome.err
    assert outcome.out.strip() == "m.safetensors"
    (header, arrays), (expected, bundled) = map(
        read_safetensors, (tmp_path / "m.safetensors", bundle.path("street-small", ".safetensors"))
    )
    assert header == expected
    assert arrays.keys() == bundled.keys()
    assert all(np.array_equal(arrays[name], bundled[name]) for name in bundled)


@needs(WEIGHTS)
def test_a_converted_file_is_not_overwritten_without_force(espy):
    source = WEIGHTS / "espnetv2_seg_s0.5_city_1024x512.pth"
    Path("m.safetensors").write_text("mine")
    assert "--force" in one_line(espy("convert", source, "-o", "m.safetensors"))
    assert Path("m.safetensors").read_text() == "mine"
    assert espy("convert", source, "-o", "m.safetensors", "--force").code == 0


@needs(WEIGHTS)
def test_a_cut_checkpoint_is_refused_and_nothing_is_written(espy):
    data = (WEIGHTS / "espnet_encoder_p2_q8.pth").read_bytes()
    Path("m.pth").write_bytes(data[: len(data) // 2])
    assert "m.pth" in one_line(espy("convert", "m.pth"))
    assert files(".") == ["m.pth"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"<!DOCTYPE html><html>", "HTML"), (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "")],
)
def test_files_that_are_no_checkpoint_are_refused_with_what_was_found(espy, content, says):
    Path("m.pth").write_bytes(content)
    message = one_line(espy("convert", "m.pth", "-o", "m.safetensors"))
    assert "m.pth" in message
    assert says in message
    assert files(".") == ["m.pth"]


@needs(WEIGHTS)
def test_predicting_with_a_published_checkpoint_says_to_convert_it(espy):
    picture("a.png")
    message = one_line(espy("predict", "a.png", "--model", WEIGHTS / "espnet_encoder_p2_q8.pth"))
    assert "espy convert" in message


def test_models_lists_the_bundled_ones(espy):
    outcome = espy("models")
    assert outcome.code == 0
    assert re.search(r"street\b.*512x1024.*66\.4", outcome.out)
    assert re.search(r"street-small\b.*53\.9", outcome.out)
    assert re.search(r"objects\b.*384x384.*67\.01", outcome.out)


def test_models_shows_the_card_of_one(espy):
    outcome = espy("models", "street")
    assert outcome.code == 0
    for word in ("ESPNetv2", "Cityscapes", "66.4", "non-commercial", "MIT", "Limits"):
        assert word in outcome.out


def test_a_model_file_is_not_replaced_by_its_export(espy, tiny_espnet):
    shutil.copy(tiny_espnet, "m.safetensors")
    before = Path("m.safetensors").read_bytes()
    outcome = espy("export", "m.safetensors", "-o", "m.safetensors", "--force", "--size", "64x96")
    assert outcome.code == 2
    assert Path("m.safetensors").read_bytes() == before


# Packages that are not installed


@pytest.mark.parametrize(
    ("missing", "arguments", "says"),
    [
        ("torch", ["--engine", "torch"], "espy-vision[train]"),
        ("onnxruntime", [], "onnxruntime"),
        ("openvino", ["--engine", "openvino"], "espy-vision[openvino]"),
    ],
)
def test_an_engine_that_is_not_installed_is_named_with_its_extra(tmp_path, missing, arguments, says):
    picture(tmp_path / "a.png")
    outcome = without([missing], "predict", "a.png", "--model", "street-small", *arguments, cwd=tmp_path)
    message = one_line(outcome)
    assert "pip install" in message
    assert says in message


def test_exporting_without_torch_names_the_extra(tmp_path):
    outcome = without(["torch"], "export", "street-small", cwd=tmp_path)
    assert "espy-vision[train]" in one_line(outcome)


def test_predicting_needs_neither_torch_nor_onnx_nor_openvino(tmp_path):
    picture(tmp_path / "a.png")
    outcome = without(
        ["torch", "onnx", "openvino", "onnxscript"], "predict", "a.png", "--model", "street-small", cwd=tmp_path
    )
    assert outcome.code == 0, outcome
    assert files(tmp_path / "out") == three("a")


# Large


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # of this test's own look at the results
@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "street-small", "--size", "2048x2048", "--tile", "1024x1024", "--overlap", "0"],
        ["--model", "tiny", "--tile", "1024x1024", "--overlap", "0"],
    ],
    ids=["street-small at 2048x2048", "a tiny network at the picture's own size"],
)
def test_a_photo_of_100_megapixels_stays_under_2_gb(arguments, tiny_onnx, tmp_path):
    """`street-small` at the picture's own size takes 1.3 GB too, and two minutes."""
    with Image.open(PHOTO) as photo:
        part = np.asarray(photo.resize((1000, 1000)))
    Image.fromarray(np.tile(part, (10, 10, 1))).save(tmp_path / "large.jpg", quality=60)
    arguments = [str(tiny_onnx) if argument == "tiny" else argument for argument in arguments]
    command = [str(ESPY), "predict", "large.jpg", *arguments]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    assert running.returncode == 0, (tmp_path / "log").read_text()
    assert usage.ru_maxrss * 1024 < 2e9
    for name in ("large.mask.png", "large.overlay.jpg"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.size == (10000, 10000)


# The other tasks


def test_a_classifiers_verb_names_classes_and_writes_no_mask(espy, tiny_classifier_onnx, tmp_path):
    photo = picture(tmp_path / "p.png", 80, 120)
    done = espy("predict", photo, "--model", tiny_classifier_onnx, "--out", tmp_path / "out")
    assert done.code == 0
    assert re.search(r"class \d \d+ %", done.out)
    assert files(tmp_path / "out") == ["p.json", "p.overlay.jpg"]
    written = json.loads((tmp_path / "out" / "p.json").read_text("utf-8"))
    assert (written["task"], len(written["top"])) == ("classify", 5)


def test_a_detectors_verb_counts_things_and_tells_those_above_the_score(espy, tiny_detector_onnx, tmp_path):
    photo = picture(tmp_path / "p.png", 80, 120)
    boxes = {}
    for score in ("0.05", "0.4"):
        out = tmp_path / score
        done = espy("predict", photo, "--model", tiny_detector_onnx, "--score", score, "--out", out, "--view", "side")
        assert done.code == 0
        assert files(out) == ["p.json", "p.side.jpg"]
        boxes[score] = json.loads((out / "p.json").read_text("utf-8"))["boxes"]
        counted = sum(int(n) for n in re.findall(r"(\d+) x class", done.out))
        assert counted == len(boxes[score]) or "nothing" in done.out
        assert all(box["score"] > float(score) for box in boxes[score])
    assert len(boxes["0.05"]) > len(boxes["0.4"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--score", "0.5"), "--score is for boxes, this model's task is classify"),
        (("--view", "mask"), "a model of task classify has overlay, side"),
        (("--tile", "64x64"), "tiles are for segmentation"),
        (("--score", "2"), "0<=x<=1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_another_task_has_is_refused_in_one_line(espy, tiny_classifier_onnx, tmp_path, options, message):
    photo = picture(tmp_path / "p.png", 80, 120)
    done = espy("predict", photo, "--model", tiny_classifier_onnx, "--out", tmp_path / "out", *options)
    assert message in done.err
    assert done.code == 2
    assert not (tmp_path / "out").exists()
