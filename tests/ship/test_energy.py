"""Joules: which counters are read, and what lies between two readings."""

import ctypes

from espy.ship import energy
from espy.ship.energy import Counter, Meter, nvml, rapl


def zone(root, folder, name, microjoules, most=262_143_328_850):
    place = root / folder
    place.mkdir()
    (place / "name").write_text(f"{name}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text(f"{most}\n")
    return place / "energy_uj"


def test_every_package_counts_once_and_a_counter_that_starts_again_is_followed(tmp_path):
    """Cores and memory lie inside a package, the platform around it, and intel-rapl-mmio shows a package again."""
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000, most=100_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 99_000_000, most=100_000_000)
    for folder, name in (
        ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"), ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0"),
    ):  # fmt: skip
        zone(tmp_path, folder, name, 1)
    counters = rapl(tmp_path)
    assert [counter.source for counter in counters] == ["processor", "processor"]
    meter = Meter(counters)
    first.write_text("7500000")
    second.write_text("1000000")  # from 99 J to 100 J, then 1 J from 0
    assert meter.lap() == {"processor": 2.5 + 2.0}
    assert meter.lap() == {"processor": 0.0}


def test_counters_that_may_not_be_read_are_none(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 1).unlink()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # opening it fails, as for all but the superuser
    zone(tmp_path, "intel-rapl:1", "package-1", "no number")
    assert rapl(tmp_path) == rapl(tmp_path / "none") == []
    assert Meter([]).lap() == {}


class Driver:
    """NVIDIA's library with two GPUs, of which the second counts no joules."""

    millijoules = 4_000

    def __init__(self, name):
        assert name == energy.NVML

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        device._obj.value = 100 + index
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device, total):
        total._obj.value = self.millijoules
        return 0 if device.value == 100 else 3


def test_gpus_that_count_joules_are_read_by_the_drivers_library(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", Driver)
    (counter,) = nvml()
    assert isinstance(counter, Counter)
    meter = Meter([counter])
    monkeypatch.setattr(Driver, "millijoules", 5_500)
    assert meter.lap() == {"gpu": 1.5}


def test_without_the_library_there_are_no_gpus(monkeypatch):
    monkeypatch.setattr(energy, "NVML", "no-such-library.so")
    assert nvml() == []
