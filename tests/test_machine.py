"""Where a figure was measured: the processor as the system names it, the cores that may be used."""

import json
import os

import pytest

from espy import machine

X86 = "processor\t: 0\nmodel name\t: Fast One @ 2.6GHz\nflags\t\t: fpu sse4_2 avx avx2 fma avx512_bf16 hypervisor sse\n"
ARM = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm asimddp sve\n"


@pytest.mark.parametrize(
    ("said", "name", "flags"),
    [
        (X86, "Fast One @ 2.6GHz", ["avx", "avx2", "avx512_bf16", "fma", "hypervisor", "sse4_2"]),
        (ARM, None, ["asimd", "asimddp", "sve"]),
        (None, None, []),
    ],
)
def test_the_processor_is_named_as_the_system_names_it(tmp_path, monkeypatch, said, name, flags):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    if said is not None:
        (tmp_path / "cpuinfo").write_text(said)
    assert machine.flags() == flags
    assert machine.processor() == name if name else machine.processor()


def test_the_stamp_is_json_and_knows_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    stamp = json.loads(json.dumps(machine.stamp()))
    assert stamp["available"] == 1 <= stamp["cores"]


def test_a_system_without_a_load_average_has_none(monkeypatch):
    def refuse():
        raise OSError

    monkeypatch.setattr(os, "getloadavg", refuse, raising=False)
    assert machine.load_average() is None
