"""The networks against inputs and outputs of the original code; the folder's README says what each file holds."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from espy.nn.units import pool
from espy.priors import priors
from espy.published import load_published

sys.path.append(str(Path(__file__).parents[1]))  # tests/ is no package

import parity_cases as cases

TOLERANCE = 5e-5
MISSING = pytest.mark.skip(reason=f"no reference cases in {cases.PARITY}: set ESPY_PARITY to their folder")
CASES = [pytest.param(path, id=path.stem) for path in cases.files()] or [pytest.param(None, id="none", marks=MISSING)]


def module_and_input(s, case):
    """The module of a case with its weights, in eval mode, and what it is called with."""
    x = torch.from_numpy(case["input"].copy())
    if "weights" in s:
        file = cases.WEIGHTS / s["weights"]
        if not file.exists():
            pytest.skip(f"no {file}: set ESPY_WEIGHTS to the folder of the sample weights")
        published = load_published(file)
        assert published.spec == cases.spec_of(s)
        return published.network, (x,)
    module = cases.module_of(s)
    cases.apply_weights(module, case)
    if s["net"] != "eesp_down" or not s.get("reinforce", True):
        return module.eval(), (x,)
    picture = torch.from_numpy(case["image"].copy())
    while picture.shape[-2] > -(-x.shape[-2] // 2):
        picture = pool(picture)
    return module.eval(), (x, picture)


def places(s, network):
    """Where each `feat_` map of a network is read: a module and the index into its output, None for the whole."""
    if s["net"] == "espnet":
        encoder = getattr(network, "encoder", network)
        found = {"stem": encoder.stem, "level2": encoder.join2, "level3": encoder.join3, "coarse": encoder.classifier}
        if s["variant"] == "full":
            found["fuse"] = network.fuse
        return {name: (module, None) for name, module in found.items()}
    levels = {f"level{level}": (network.encoder, level - 1) for level in (1, 2, 3, 4)}
    return levels | {"dec1": (network.pyramid1, None), "dec4": (network.pyramid4, None)}


def check(name, ours, theirs):
    assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, reference {theirs.shape}"
    difference = np.abs(ours.numpy().astype(np.float64) - theirs).max()
    allowed = TOLERANCE * max(1.0, np.abs(theirs).max())
    print(f"{name}: max |difference| {difference:.2e} of {allowed:.2e} allowed")
    assert difference <= allowed, f"{name}: max |difference| {difference:.3e}, allowed {allowed:.3e}"


@pytest.mark.parametrize("path", CASES)
def test_parity(path):
    s = cases.read_spec(path)
    with np.load(path) as case:
        module, inputs = module_and_input(s, case)
        names = [entry.removeprefix("feat_") for entry in case.files if entry.startswith("feat_")]
        seen = {}

        def keep(name, index):
            return lambda _module, _inputs, output: seen.update({name: output if index is None else output[index]})

        handles = []
        for name in names:
            place, index = places(s, module)[name]
            handles.append(place.register_forward_hook(keep(name, index)))
        with torch.no_grad():
            output = module(*inputs)
        for handle in handles:
            handle.remove()
        for name in names:
            check(name, seen[name], case[f"feat_{name}"])
        if s["net"] != "espnetv2_ssd":
            check("output", output, case["output"])
            return
        for end in ("", "_b"):  # two sizes, one network
            with torch.no_grad():
                scores, boxes = module(torch.from_numpy(case[f"input{end}"]))
            check(f"conf{end}", scores, case[f"conf{end}"])
            check(f"loc{end}", boxes, case[f"loc{end}"])
            assert np.array_equal(priors(case[f"input{end}"].shape[2]), case[f"priors{end}"])


@pytest.mark.skipif(not cases.PARITY.is_dir(), reason=f"no {cases.PARITY}: set ESPY_PARITY to the reference cases")
def test_priors_are_the_references_at_every_size():
    with np.load(cases.PARITY / "priors.npz") as case:
        sizes = [int(name.removeprefix("priors_")) for name in case.files if name.startswith("priors_")]
        assert len(sizes) == 7
        for size in sizes:
            assert np.array_equal(priors(size), case[f"priors_{size}"]), size


@pytest.mark.skipif(not cases.PARITY.is_dir(), reason=f"no {cases.PARITY}: set ESPY_PARITY to the reference cases")
def test_parity_holds_intermediate_maps_of_both_families():
    """Two of the files carry `feat_` maps; without them the hooks above would check nothing."""
    with_maps = set()
    for path in cases.files():
        with np.load(path) as case:
            if any(entry.startswith("feat_") for entry in case.files):
                with_maps.add(cases.read_spec(path)["net"])
    assert with_maps >= {"espnet", "espnetv2_seg"}
