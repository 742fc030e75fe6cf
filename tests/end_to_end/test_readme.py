"""What the documents say holds: their Python runs, their commands exist, their tables are counted, their links resolve."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from espy import spec as specs
from espy.bundle import NAMES, path
from espy.cli import app
from espy.errors import ModelError
from espy.header import from_json, read_safetensors, to_json
from espy.published import layout
from samples import PHOTO

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "src" / "espy" / "bundled" / "photos"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "src").rglob("*.md"))]


def blocks(document, language):
    """The fenced code blocks of a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(document):
    """Run a document's Python, block after block, in one namespace."""
    names = {"__name__": "__main__"}
    found = blocks(document, "python")
    assert found
    for number, block in enumerate(found, 1):
        exec(compile(block, f"{document}, Python block {number}", "exec"), names)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A temporary folder to stand in, from which the repository's files can be read as from its own folder."""
    (tmp_path / "src").symlink_to(ROOT / "src", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestPython:
    def test_the_readmes_example_runs(self, checkout, capsys):
        run("README.md")
        assert capsys.readouterr().out.splitlines() == ["(960, 1280)", "(960, 1280) uint8", "building"]
        assert [p.name for p in checkout.iterdir()] == ["src"], "the example leaves files behind"

    def test_every_block_of_the_python_guide_runs(self, checkout, capsys):
        """Its checkpoint is a stand-in: the published file's names and shapes, random weights."""
        generator = torch.Generator().manual_seed(0)
        rows = layout(specs.make("espnetv2", width=0.5))
        state = {theirs: torch.rand(shape, generator=generator) + 0.1 for theirs, _, shape in rows}
        torch.save(state, checkout / "espnetv2_s_0.5_city_1024x512.pth")
        run("docs/python.md")
        printed = capsys.readouterr().out.splitlines()
        said = {
            "Model('street.onnx', task='segment', classes=20, engine='onnxruntime')", "road (128, 64, 128)",
            "(512, 1024)", "(60, 80)", "missing.jpg: no such file", "(1, 11, 120, 161)", "class 1",
            "espnetv2: width must be one of 0.5, 1.0, 1.25, 1.5, 2.0, not 0.7",
        }  # fmt: skip
        assert said <= set(printed), said - set(printed)
        assert {"dog.png", "dog.jpg", "small.onnx"} <= {p.name for p in checkout.iterdir()}


class TestCommands:
    ROWS = re.findall(r"^\| `(\w+)` \| .* \| `(espy [^`]+)` \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)

    def test_the_table_of_verbs_has_every_verb_once(self):
        assert sorted(verb for verb, _ in self.ROWS) == sorted(app.commands)

    @pytest.mark.parametrize(("verb", "example"), ROWS)
    def test_an_example_is_a_call_that_the_verb_understands(self, verb, example):
        program, called, *arguments = shlex.split(example)
        assert (program, called) == ("espy", verb)
        app.commands[verb].make_context(verb, arguments)  # parses, runs nothing

    @pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "sh")], ids=lambda d: d.name)
    def test_commands_in_shell_blocks_exist(self, document):
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        for line in "".join(blocks(document, "sh")).splitlines():
            program, verb, *arguments = shlex.split(line, comments=True)
            if program == "espy":
                app.commands[verb].make_context(verb, arguments)
            else:
                assert program == "make", line
                assert verb in targets, line

    def test_the_tables_of_networks_and_of_a_recipes_fields_are_those_of_the_code(self):
        check = subprocess.run(
            [sys.executable, ROOT / "docs" / "tables.py", "--check"], capture_output=True, text=True, check=False
        )
        assert check.returncode == 0, check.stdout + check.stderr

    def test_the_accuracies_are_those_that_were_stated(self):
        check = subprocess.run(
            [sys.executable, ROOT / "docs" / "accuracy.py", "--check"], capture_output=True, text=True, check=False
        )
        assert check.returncode == 0, check.stdout + check.stderr
        measured = re.findall(
            r"\| ([\d.]+) \| [\d.]+ \| [^|]+ \|$", (ROOT / "docs" / "accuracy.md").read_text("utf-8"), re.MULTILINE
        )
        said = re.findall(r"(\d\d\.\d) %", (ROOT / "docs" / "evaluate.md").read_text("utf-8"))
        assert len(said) == 2
        assert set(said) <= {f"{float(value):.1f}" for value in measured}

    def test_the_shares_to_expect_are_those_of_the_demonstration(self):
        expected = json.loads((PHOTOS / "expected.json").read_text("utf-8"))
        rows = re.findall(r"^\| (\w+\.jpg) \| (\w+) \| (.+) \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
        assert {(model, photo) for photo, model, _ in rows} == {
            (m, p) for m, photos in expected.items() for p in photos
        }
        for photo, model, text in rows:
            for name, percent in re.findall(r"([a-z ]+?) (\d+) %", text):
                assert round(100 * expected[model][photo][name.strip()]) == int(percent), (photo, name)

    def test_figures_of_the_bundled_models_are_those_of_their_headers(self):
        text = (ROOT / "README.md").read_text("utf-8")
        for name in NAMES:
            header = read_safetensors(path(name, ".safetensors"))[0]
            row = re.search(rf"^\| `{name}`.*$", text, re.MULTILINE)[0]
            assert f"{header.card.metrics[0].value} %" in row
            assert "{} x {}".format(*header.preprocess.size) in row
            assert f"s = {header.spec.width}" in row


def anchors(document):
    """The places in a document that a link can name, as code hosts make them of headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_relative_links_resolve(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = document.parent / target if target else document
        assert file.resolve().is_relative_to(ROOT), link
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def test_pictures_of_the_documents_are_small():
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert all(picture.stat().st_size <= 150_000 for picture in pictures)


# Schemas: the part of JSON Schema that docs/schema uses, checked by hand

KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
         "null": type(None)}  # fmt: skip
REMARKS = {"$schema", "$defs", "title", "description"}


def schema(name):
    return json.loads((ROOT / "docs" / "schema" / name).read_text("utf-8"))


def is_kind(value, kind):
    return isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def faults(value, rule, whole, at="$"):
    """Where and how a value breaks a schema's rule."""
    found = []
    for key, wanted in rule.items():
        if key == "$ref":
            found += faults(value, whole["$defs"][wanted.removeprefix("#/$defs/")], whole, at)
        elif key == "oneOf":
            fits = sum(not faults(value, one, whole, at) for one in wanted)
            found += [f"{at}: fits {fits} of the forms"] * (fits != 1)
        elif key == "const" or key == "enum":
            found += [f"{at}: {value!r} is not {wanted!r}"] * (value not in (wanted if key == "enum" else [wanted]))
        elif key == "type":
            kinds = wanted if isinstance(wanted, list) else [wanted]
            if not any(is_kind(value, kind) for kind in kinds):
                return [f"{at}: {value!r} is no {wanted}"]
        elif key == "minimum" or key == "maximum":
            beyond = is_kind(value, "number") and (value < wanted if key == "minimum" else value > wanted)
            found += [f"{at}: {value} is beyond {wanted}"] * beyond
        elif key == "minItems" or key == "maxItems":
            beyond = len(value) < wanted if key == "minItems" else len(value) > wanted
            found += [f"{at}: {len(value)} items"] * beyond
        elif key == "required":
            found += [f"{at}: lacks {name}" for name in wanted if name not in value]
        elif key == "items":
            found += [fault for i, item in enumerate(value) for fault in faults(item, wanted, whole, f"{at}[{i}]")]
        elif key == "properties":
            found += [
                f for name in wanted if name in value for f in faults(value[name], wanted[name], whole, f"{at}.{name}")
            ]
        elif key == "additionalProperties":
            for name in value.keys() - rule.get("properties", {}).keys():
                found += faults(value[name], wanted, whole, f"{at}.{name}") if wanted else [f"{at}: unknown {name}"]
        else:
            assert key in REMARKS, f"the check does not know {key!r}"
    return found


class TestSchemas:
    @pytest.mark.parametrize("view", ["overlay", "mask", "side"])
    def test_predict_prints_what_its_schema_says(self, tmp_path, view):
        bad = tmp_path / "bad.jpg"
        bad.write_bytes(b"no picture")
        call = ["predict", PHOTOS / "dog.jpg", bad, "--model", "street-small", "--view", view]
        call += ["--out", tmp_path / "out", "--json"]
        code = f"from espy.cli import main; main({[str(part) for part in call]!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        rule, printed = schema("predict.json"), json.loads(done.stdout)
        assert faults(printed, rule, rule) == []
        assert [entry["source"] for entry in printed["errors"]] == [str(bad)]
        (entry,) = printed["results"]
        assert set(entry["output"]) == {"mask", "json"} | ({view} - {"mask"})
        written = json.loads(Path(entry["output"]["json"]).read_text("utf-8"))
        assert faults(written, rule["$defs"]["result"], rule) == []

    @pytest.mark.parametrize("task", ["classifier", "detector"])
    def test_predict_prints_what_its_schema_says_of_the_other_tasks(self, espy, tmp_path, request, task):
        model = request.getfixturevalue(f"tiny_{task}_onnx")
        done = espy("predict", PHOTO, "--model", model, "--out", tmp_path, "--json")
        rule, printed = schema("predict.json"), json.loads(done.out)
        assert faults(printed, rule, rule) == []
        (entry,) = printed["results"]
        assert entry["top" if task == "classifier" else "boxes"]

    @pytest.mark.parametrize("name", NAMES)
    def test_headers_of_bundled_models_fit(self, name):
        rule, header = schema("header.json"), to_json(read_safetensors(path(name, ".safetensors"))[0])
        assert faults(json.loads(header), rule, rule) == []

    def test_headers_in_the_guide_fit_and_the_complete_one_is_accepted(self):
        rule = schema("header.json")
        shortened, complete = blocks("docs/model-file.md", "json")
        assert faults(json.loads(complete), rule, rule) == []
        assert from_json(complete, "docs/model-file.md").labels[1].name == "plant"
        assert faults(json.loads(shortened), rule, rule) == []  # a network of one kind has one label
        with pytest.raises(ModelError, match="1 labels for 12 classes"):
            from_json(shortened, "docs/model-file.md")

    def test_every_choice_of_every_network_stands_in_the_schema(self):
        rule = schema("header.json")
        for name, tasks in specs.NETWORKS.items():
            for task, kind in tasks.items():
                form = rule["$defs"][name if task == "segment" else f"{name}_{task}"]
                assert set(form["properties"]) == {"network", *kind.__struct_fields__}
                assert form["properties"]["task"]["const"] == task

    def test_the_check_finds_what_does_not_fit(self):
        rule = schema("predict.json")
        good = {"espy": 1, "command": "predict", "results": [], "errors": []}
        assert faults(good, rule, rule) == []
        for change in ({"espy": 2}, {"results": {}}, {"errors": [{"source": "a"}]}, {"more": 1}, {"results": [{}]}):
            assert faults(good | change, rule, rule) != []
