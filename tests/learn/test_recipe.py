"""A recipe: what it refuses and in which words, how overrides are read, and that it reads back as it was written."""

import tomllib
import types
from collections import Counter
from math import inf, nan
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import espy
from espy.evaluation import METRICS
from espy.learn import recipe as recipes
from espy.learn.recipe import SECTIONS, RecipeError, from_dict, read_recipe, to_toml
from samples import attempt, scene
from trees import mask, save

LEAST = {"network": {"network": "espnet"}, "data": {"set": "folder:photos"}}
ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("recipes/**/*.toml"))
FIELDS = [(section, field) for section, kind in SECTIONS.items() for field in kind.__struct_fields__]


def with_(section, **fields):
    return {**LEAST, section: {**LEAST.get(section, {}), **fields}}


def refusal(data, overrides=()):
    recipe, message = attempt(RecipeError, from_dict, data, overrides, "my.toml")
    assert recipe is None
    assert message.startswith("my.toml: ")
    assert "\n" not in message
    return message.removeprefix("my.toml: ")


@pytest.fixture
def written(tmp_path):
    """Writes a recipe's file."""

    def write(content):
        path = tmp_path / "r.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# What it says of itself


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_field_has_a_meaning_in_words(section, field):
    assert len(recipes.meaning(SECTIONS[section])[field].split()) >= 2


def test_no_two_sections_have_a_field_of_one_name_so_that_an_override_needs_no_section():
    kinds = [kind for tasks in recipes.specs.NETWORKS.values() for kind in tasks.values()]
    choices = {name for kind in kinds for name in ("network", *kind.__struct_fields__)}
    counted = Counter([*(field for _, field in FIELDS), *choices])
    assert [name for name, times in counted.items() if times > 1] == []


def test_notes_name_every_field_also_one_without_a_value():
    shown = to_toml(from_dict(LEAST), notes=True)
    for section, field in FIELDS:
        assert any(line.startswith((f"{field} = ", f"# {field}: ")) for line in shown.splitlines()), (section, field)
    assert "# crop: (height, width) the network sees in training" in shown
    assert from_dict(tomllib.loads(shown)) == from_dict(LEAST)


# What it refuses


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_("train", epochs="x"), '[train] epochs = "x": expected int, got str'),
        (with_("train", epochs=0), "[train] epochs = 0: expected int >= 1"),
        (with_("train", epochs=True), "[train] epochs = true: expected int, got bool"),
        (with_("train", epochs=2.5), "[train] epochs = 2.5: expected int, got float"),
        (with_("train", rate="1"), '[train] rate = "1": expected float, got str'),
        (with_("train", rate=nan), "[train] rate is nan: give a finite number"),
        (with_("train", rate=inf), "[train] rate is inf: give a finite number"),
        (with_("augment", scale=[1.0, inf]), "[augment] scale is inf: give a finite number"),
        (with_("train", optimiser="sdg"), "[train] optimiser = \"sdg\": did you mean 'sgd'?"),
        (with_("train", precision="int8"), "known: auto, float32, bfloat16, float16"),
        (with_("loss", class_weights="freqency"), "did you mean 'frequency'?"),
        (with_("loss", class_weights=["a"]), "[loss] class_weights[0]: expected float, got str"),
        (with_("loss", cross_entropy=0), "cross_entropy and dice are both 0: nothing would be learnt"),
        (with_("loss", ohem=0), "[loss] ohem = 0: expected float > 0.0"),
        (with_("data", size=[512]), "[data] size: expected array of length 2, got 1"),
        (with_("data", size=[512, 65536]), "[data] size must be 16 to 32768 pixels a side and a multiple of 32, not (512, 65536)"),
        (with_("data", size="512x1024"), '[data] size = "512x1024": expected array, got str'),
        (with_("data", multiple=16), "[data] multiple = 16: known: 1, 32"),
        (with_("data", hold_out="a*"), '[data] hold_out = "a*": expected array, got str'),
        (with_("augment", crop=[8, 8]), "crop must be 16 to 32768 pixels a side, not 8"),
        (with_("augment", scale=[2, 1]), "scale must rise within 0.05 to 20"),
        (with_("card", title="a\udcff"), "[card] title holds characters that are no Unicode text"),
        (with_("network", network="espnetv3"), "[network] unknown network 'espnetv3': did you mean 'espnetv2'?"),
        (with_("network", alfa2=3), "[network] espnet has no choice 'alfa2': did you mean 'alpha2'?"),
        (with_("network", classes="a"), "[network] espnet: classes: expected int, got str"),
        (with_("train", epoch=3), "[train] has no field 'epoch': did you mean 'epochs'?"),
        (with_("train", zebra=3), "[train] has no field 'zebra': known: init"),
        ({**LEAST, "trian": {"epochs": 3}}, "no section [trian]: did you mean 'train'?"),
        ({**LEAST, "epochs": 3}, "no section [epochs]: it belongs below [train]"),
        ({**LEAST, "train": 3}, "train is a section: write [train] and its fields below it"),
        ({**LEAST, "network": "espnet"}, "network is a section: write [network]"),
        ({**LEAST, "network": {}}, "[network] lacks 'network': add a line such as network = "),
        ({"network": LEAST["network"]}, "[data] lacks 'set': add a line such as set = "),
        ({}, "[network] lacks 'network'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_in_one_line_that_says_where_and_what(data, words):
    assert words in refusal(data)


def test_whole_numbers_stand_for_others_where_a_field_takes_those():
    recipe = from_dict(LEAST, {"rate": 1, "scale": [1, 2], "class_weights": [1, 2]})
    assert (recipe.train.rate, recipe.augment.scale, recipe.loss.class_weights) == (1.0, (1.0, 2.0), (1.0, 2.0))
    assert type(recipe.train.rate) is type(recipe.augment.scale[1]) is float


@pytest.mark.parametrize(
    "content", [b"[data", b"\xff\xfe[\x00", b"x = " + 9000 * b"[", b"x = " + 9000 * b"9", b"\x00"], ids=lambda b: str(b[:9])
)  # fmt: skip
def test_a_file_that_is_not_toml_is_refused_in_one_line(written, content):
    path = written(content)
    _, message = attempt(RecipeError, read_recipe, path)
    assert message.startswith(f"{path}: is not TOML: ")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path, why in ((tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")):
        _, message = attempt(RecipeError, read_recipe, path)
        assert message.startswith(f"{path}: cannot be read: {why}")


def test_a_byte_order_mark_is_no_part_of_a_recipe(written):
    assert read_recipe(written(b"\xef\xbb\xbf" + to_toml(from_dict(LEAST)).encode())) == from_dict(LEAST)


# Overrides


@pytest.mark.parametrize(
    ("text", "section", "field", "value"),
    [
        ("epochs=3", "train", "epochs", 3), ("train.epochs=3", "train", "epochs", 3), (" epochs = 3 ", "train", "epochs", 3),
        ("rate=1e-2", "train", "rate", 0.01), ("freeze_norm=true", "train", "freeze_norm", True),
        ("set=folder:my photos", "data", "set", "folder:my photos"), ("init=", "train", "init", ""),
        ('title="3"', "card", "title", "3"), ("title='a = b'", "card", "title", "a = b"), ("title=a=b", "card", "title", "a=b"),
        ("set=C:\\photos", "data", "set", "C:\\photos"), ("scale=[1, 2]", "augment", "scale", (1.0, 2.0)),
        ('hold_out=["a*", "b*"]', "data", "hold_out", ("a*", "b*")), ("train=extra", "data", "train", "extra"),
        ("class_weights=[1, 2.5]", "loss", "class_weights", (1.0, 2.5)), ("crop=[32, 48]", "augment", "crop", (32, 48)),
    ],
)  # fmt: skip
def test_an_override_is_a_value_as_toml_has_it_or_a_bare_word(text, section, field, value):
    recipe = from_dict(LEAST, [text])
    assert getattr(getattr(recipe, section), field) == value
    rest = {**LEAST, section: {**LEAST.get(section, {}), field: value}}
    assert recipe == from_dict(rest)


def test_a_networks_choice_is_overridden_by_its_name():
    assert from_dict(LEAST, ["alpha2=3", "network.branches=4"]).network == {
        "network": "espnet", "alpha2": 3, "branches": 4,
    }  # fmt: skip
    assert from_dict(LEAST, ["network=espnetv2", "width=1.0"]).network == {"network": "espnetv2", "width": 1.0}


def test_the_last_of_several_overrides_holds_and_what_was_given_is_left_alone():
    given_ = with_("train", epochs=7)
    assert from_dict(given_, ["epochs=3", "train.epochs=4"]).train.epochs == 4
    assert given_ == with_("train", epochs=7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch=3", "no field 'epoch': did you mean 'epochs'?"), ("train.epoch=3", "[train] has no field 'epoch'"),
        ("trian.epochs=3", "no section [trian]: did you mean 'train'?"), ("qqqq=3", "no field 'qqqq': known: "),
        ("epochs=three", '[train] epochs = "three": expected int, got str'), ("network.zebra=1", "has no choice 'zebra'"),
        ("title=3", "[card] title = 3: expected str, got int"),
    ],
)  # fmt: skip
def test_an_override_of_nothing_known_is_refused_with_the_nearest_name(text, words):
    assert words in refusal(LEAST, [text])


@pytest.mark.parametrize("text", ["epochs", "=3", " = 3", ""])
def test_an_override_is_written_key_equals_value(text):
    _, message = attempt(RecipeError, from_dict, LEAST, [text])
    assert "write key=value, such as train.epochs=50" in message


def test_an_override_cannot_reach_into_what_is_no_section():
    assert "train is a section" in refusal({**LEAST, "train": 3}, ["epochs=3"])


# Written and read back


def values(hint):
    """A strategy of what a field's type and bounds allow."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*map(values, get_args(hint)))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        return st.lists(values(inner[0]), max_size=5).map(tuple) if inner[1] is ... else st.tuples(*map(values, inner))
    if metas := getattr(hint, "__metadata__", ()):
        bound = {k: v for meta in metas for k in ("ge", "gt", "le", "lt") if (v := getattr(meta, k)) is not None}
        kind = hint.__origin__
        if kind is int:
            return st.integers(bound.get("ge"), bound["lt"] - 1 if "lt" in bound else bound.get("le"))
        if kind is float:
            least, most = bound.get("ge", bound.get("gt")), bound.get("le", bound.get("lt"))
            return st.floats(
                least, most, exclude_min="gt" in bound, exclude_max="lt" in bound, allow_nan=False, allow_infinity=False
            )
        return values(kind)
    return {
        int: st.integers(), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans(),
        str: st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\x00\x7f\n\r\t\x85\u2028\ufeff#=[]')),
        type(None): st.none(),
    }[hint]  # fmt: skip


@st.composite
def tables(draw):
    """Sections with any number of their fields, of any value that each takes."""
    data = {"network": draw(st.sampled_from([{"network": "espnet", "widths": [8, 16, 24]}, {"network": "espnetv2"}]))}
    for section, kind in SECTIONS.items():
        hints = get_type_hints(kind, include_extras=True)
        data[section] = {name: draw(values(hint)) for name, hint in hints.items() if draw(st.booleans())}
    data["data"].setdefault("set", "folder:photos")
    if "size" in data["data"]:
        data["data"]["size"] = tuple(32 * draw(st.integers(1, 128)) for _ in range(2))
    if "scale" in data["augment"]:
        data["augment"]["scale"] = tuple(sorted(draw(st.floats(0.05, 20)) for _ in range(2)))
    if data["augment"].get("crop"):
        data["augment"]["crop"] = tuple(draw(st.integers(16, 4096)) for _ in range(2))
    if not data["loss"].get("cross_entropy", 1) and not data["loss"].get("dice"):
        data["loss"]["dice"] = 0.5
    return data


@given(tables(), st.booleans())
def test_a_recipe_written_as_toml_reads_back_as_the_same(data, notes):
    recipe = from_dict(data)
    assert from_dict(tomllib.loads(to_toml(recipe, notes=notes))) == recipe
    for section, table in data.items():
        for field, value in table.items() if section != "network" else ():
            assert getattr(getattr(recipe, section), field) == value


@given(tables())
def test_a_recipe_differs_from_another_by_the_fields_that_change_weights(data):
    recipe, plain = from_dict(data), from_dict(LEAST)
    told = {line.partition(":")[0] for line in recipes.differences(plain, recipe)}
    free = {"train.workers", "train.save_minutes", "validate.pictures", "card.title", "card.data", "card.terms"}
    assert list(recipes.differences(recipe, recipe)) == []
    for section, field in FIELDS:
        same = getattr(getattr(plain, section), field) == getattr(getattr(recipe, section), field)
        assert (f"{section}.{field}" in told) == (not same and f"{section}.{field}" not in free)


def test_a_recipe_and_the_file_written_of_it_do_not_differ(written):
    recipe = from_dict({**LEAST, "network": {"network": "espnet", "widths": (8, 16, 24)}})
    assert list(recipes.differences(read_recipe(written(to_toml(recipe))), recipe)) == []


def test_a_file_is_replaced_whole_and_never_against_ones_will(tmp_path):
    path, recipe = tmp_path / "r.toml", from_dict(LEAST)
    recipes.write_recipe(path, recipe)
    with pytest.raises(recipes.EspyError, match="--force"):
        recipes.write_recipe(path, recipe)
    recipes.write_recipe(path, msgspec.structs.replace(recipe, card=recipes.About("another")), force=True)
    assert read_recipe(path).card.title == "another"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_of_the_project_is_valid(path):
    recipe = read_recipe(path)
    assert from_dict(tomllib.loads(to_toml(recipe))) == recipe


def test_there_are_recipes_and_each_opens_with_how_it_was_followed():
    assert RECIPES
    for path in RECIPES:
        head = [line for line in path.read_text("utf-8").split("[", 1)[0].splitlines() if line]
        assert all(line.startswith("#") for line in head)
        assert f"espy train recipes/{path.name}" in head[0]
        assert " h" in " ".join(head)
        task = read_recipe(path).network.get("task", "segment")
        assert METRICS[task] in " ".join(head)


def test_camvid_s_recipe_runs_two_steps(tmp_path):
    """On four small pictures laid out as CamVid: starting weights, mapping and all fields are the recipe's."""
    for split, pairs in (("train", 4), ("val", 1)):
        for k in range(pairs):
            save(tmp_path / "set" / split / f"{k}.png", scene(64, 96, seed=k))
            save(tmp_path / "set" / f"{split}annot" / f"{k}.png", mask(64, 96, values=(0, 1, 3, 11), seed=k))
    changed = {"data.set": f"camvid:{tmp_path / 'set'}", "size": [64, 96], "crop": [64, 64], "batch": 2, "epochs": 1}
    run = espy.train(ROOT / "recipes" / "camvid.toml", folder=tmp_path / "run", threads=1, **changed)
    assert run.metrics[-1]["step"] == 2
    assert 0 < run.metrics[-1]["loss"] < inf
    with espy.load(run.best, engine="torch") as model:
        assert [label.name for label in model.labels][:2] == ["sky", "building"]
        assert model.header.sizes == "any"
