"""Checkpoints are read without running them: what torch reads comes out equal, all else is refused in one line."""

import io
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import parity_cases
from espy.errors import ModelError
from espy.torchfile import read_tensors

LAYOUTS = ["old", "zip"]
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def saved(content, layout):
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=layout == "zip")
    return stream.getvalue()


def old_layout(pickled, keys=(), storages=b""):
    """A file of the old layout around one pickle, made by hand."""
    parts = (MAGIC, PROTOCOL, SYSTEM)
    return b"".join(pickle.dumps(p, 2) for p in parts) + pickled + pickle.dumps(list(keys), 2) + storages


def zip_layout(pickled, files=()):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in files:
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def read(tmp_path, data):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    return read_tensors(path)


def refusal(tmp_path, data):
    """The message with which a file is refused: one line that begins with its path."""
    with pytest.raises(ModelError) as caught:
        read(tmp_path, data)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, repr(message)
    assert message.startswith(f"{tmp_path / 'weights.pth'}: ")
    return message


def arrays_or_one_line(path):
    """What a damaged file may give, and nothing else."""
    arrays, message = None, ""
    try:
        arrays = read_tensors(path)
    except ModelError as error:
        message = str(error)
    if arrays is None:
        assert len(message.splitlines()) == 1, repr(message)
    else:
        assert arrays
        assert all(isinstance(a, np.ndarray) for a in arrays.values())


def opcodes(value):
    """The opcodes that push a value: its pickle without the frame."""
    return pickle.dumps(value, 2)[2:-1]


def tensor_opcodes(count, size, stride, offset=0, key=None):
    """The opcodes of one tensor as torch writes them."""
    storage = (
        b"(" + opcodes("storage") + b"ctorch\nFloatStorage\n" + (opcodes("0") if key is None else key) + opcodes("cpu")
        + opcodes(count) + b"NtQ"
    )  # fmt: skip
    rest = opcodes(offset) + opcodes(size) + opcodes(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def one_tensor(count, size, stride, offset=0, key=None, numbers=1):
    pickled = b"\x80\x02}" + opcodes("a") + tensor_opcodes(count, size, stride, offset, key) + b"s."
    return old_layout(pickled, ["0"], struct.pack("<q", count) + bytes(4 * numbers))


@pytest.mark.parametrize("layout", LAYOUTS)
class TestWhatTorchWrites:
    def equal(self, tmp_path, state, layout, content=None):
        arrays = read(tmp_path, saved(state if content is None else content, layout))
        assert list(arrays) == list(state)
        for name, tensor in state.items():
            expected = tensor.detach().numpy()
            assert arrays[name].dtype == expected.dtype
            assert arrays[name].shape == expected.shape
            np.testing.assert_array_equal(arrays[name], expected)

    def test_every_kind_of_number(self, tmp_path, layout):
        kinds = ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
        self.equal(tmp_path, {k: torch.tensor([[0, 1, 2], [3, 4, 5]]).to(getattr(torch, k)) for k in kinds}, layout)

    def test_scalars_and_empty_tensors(self, tmp_path, layout):
        self.equal(tmp_path, {"scalar": torch.tensor(3.5), "none": torch.empty(0, 3), "one": torch.ones(1)}, layout)

    def test_views_of_one_storage(self, tmp_path, layout):
        t = torch.arange(60.0).reshape(3, 4, 5)
        state = {"whole": t, "part": t[1:, ::2], "turned": t[0].t(), "one": t[2, 3, 4], "spread": t[0, 0].expand(2, 5)}
        self.equal(tmp_path, state, layout)

    def test_parameters(self, tmp_path, layout):
        self.equal(tmp_path, {"p": nn.Parameter(torch.rand(3)), "t": torch.rand(2)}, layout)

    def test_a_networks_state(self, tmp_path, layout):
        self.equal(tmp_path, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4)).state_dict(), layout)

    def test_unusual_values_keep_their_bits(self, tmp_path, layout):
        bits = np.array([0x7F800000, 0xFF800000, 0x7FC00001, 1, 0x80000000, 0x00800000], np.uint32)
        arrays = read(tmp_path, saved({"a": torch.from_numpy(bits.view(np.float32).copy())}, layout))
        np.testing.assert_array_equal(arrays["a"].view(np.uint32), bits)

    def test_wrapped_state_with_an_optimizers(self, tmp_path, layout):
        network = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        content = {"epoch": 3, "state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), "best": 0.5}
        self.equal(tmp_path, network.state_dict(), layout, content)

    def test_entries_that_are_no_tensors_are_left_out(self, tmp_path, layout):
        assert list(read(tmp_path, saved({"epoch": 3, "a": torch.ones(2), "note": "x", "lr": 0.1}, layout))) == ["a"]

    def test_content_without_named_tensors_is_refused(self, tmp_path, layout):
        for content in ([torch.ones(2)], torch.ones(2), {}, {"epoch": 3}, {"state_dict": {}}, "text", 7, None):
            refusal(tmp_path, saved(content, layout))

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.complex64])
    def test_unknown_kinds_of_number_are_refused_by_name(self, tmp_path, layout, kind):
        assert "Storage" in refusal(tmp_path, saved({"a": torch.ones(2, dtype=kind)}, layout))


needs_weights = pytest.mark.skipif(
    not parity_cases.WEIGHTS.is_dir(), reason=f"no {parity_cases.WEIGHTS}: set ESPY_WEIGHTS to the sample weights"
)
SAMPLES = sorted(parity_cases.WEIGHTS.glob("*.pth"))


@needs_weights
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_published_files_read_as_torch_reads_them(path, layout, tmp_path):
    reference = torch.load(path, weights_only=True, map_location="cpu")
    arrays = read_tensors(path) if layout == "old" else read(tmp_path, saved(reference, "zip"))
    assert list(arrays) == list(reference)
    for name, tensor in reference.items():
        assert arrays[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_reading_does_not_import_torch(tmp_path):
    for layout in LAYOUTS:
        path = tmp_path / f"{layout}.pth"
        path.write_bytes(saved(nn.Linear(2, 2).state_dict(), layout))
        code = (
            "import sys; from espy.torchfile import read_tensors\n"
            f"assert list(read_tensors({str(path)!r})) == ['weight', 'bias']\n"
            "assert 'torch' not in sys.modules and 'pickle' not in dir()"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestOtherFiles:
    @pytest.mark.parametrize(("data", "found"), [
        (b"", "empty"),
        (bytes(4096), "zero bytes"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML"),
        (b"\n  <html lang='en'>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1501621\n", "LFS"),
        (b"hello, this is text\n", "not a PyTorch checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not a PyTorch checkpoint"),
        (zip_layout(b"", ())[:0] + b"PK\x05\x06" + bytes(18), "not a PyTorch checkpoint"),
    ])  # fmt: skip
    def test_is_named_for_what_it_is(self, tmp_path, data, found):
        assert found in refusal(tmp_path, data)

    def test_zip_of_something_else_is_refused(self, tmp_path):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("readme.txt", "hello")
        assert "zip archive" in refusal(tmp_path, stream.getvalue())

    def test_compressed_zip_is_refused(self, tmp_path):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
            archive.writestr("archive/data/0", bytes(10**7))
        assert "compressed" in refusal(tmp_path, stream.getvalue())

    def test_torchscript_is_refused_as_code(self, tmp_path):
        data = zip_layout(b"\x80\x02}.", [("constants.pkl", b"\x80\x02)."), ("code/__torch__.py", b"")])
        assert "TorchScript" in refusal(tmp_path, data)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_torchscript_written_by_torch_is_refused_as_code(self, tmp_path):
        stream = io.BytesIO()
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), stream)
        assert "TorchScript" in refusal(tmp_path, stream.getvalue())

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_pickled_module_is_refused_by_its_class(self, tmp_path, layout):
        assert "torch.nn.modules.linear.Linear" in refusal(tmp_path, saved(nn.Linear(2, 2), layout))

    def test_missing_file_and_folder_are_refused(self, tmp_path):
        for path in (tmp_path / "missing.pth", tmp_path):
            with pytest.raises(ModelError, match="cannot be read") as caught:
                read_tensors(path)
            assert "\n" not in str(caught.value)

    def test_big_endian_files_are_refused(self, tmp_path):
        data = b"".join(pickle.dumps(p, 2) for p in (MAGIC, PROTOCOL, {**SYSTEM, "little_endian": False}, {}, []))
        assert "big-endian" in refusal(tmp_path, data)
        assert "big-endian" in refusal(tmp_path, zip_layout(pickle.dumps({}, 2), [("byteorder", b"big")]))


class RunsSystem:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


class RunsEval:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return eval, (f"open({str(self.canary)!r}, 'w').close()",)


@pytest.mark.parametrize(("attack", "name"), [(RunsSystem, "posix.system"), (RunsEval, "builtins.eval")])
class TestCode:
    """A pickle that would run something is refused, its name told, and nothing has run."""

    @pytest.mark.parametrize("inside", [False, True])
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("layout", ["bare", *LAYOUTS])
    def test_is_refused_unrun(self, tmp_path, attack, name, layout, protocol, inside):
        canary = tmp_path / "canary"
        evil = attack(canary)
        pickled = pickle.dumps({"weight": evil} if inside else evil, protocol)
        data = {"bare": pickled, "old": old_layout(pickled), "zip": zip_layout(pickled)}[layout]
        message = refusal(tmp_path, data)
        assert not canary.exists()
        # protocol 2 writes Python 2's name of the module
        assert name in message or name.replace("builtins", "__builtin__") in message
        pickle.loads(pickled)
        assert canary.exists(), "the attack is real: pickle runs it"

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_saved_by_torch_beside_tensors_is_refused_unrun(self, tmp_path, attack, name, layout):
        canary = tmp_path / "canary"
        assert name.partition(".")[2] in refusal(tmp_path, saved({"a": torch.ones(2), "b": attack(canary)}, layout))
        assert not canary.exists()

    @pytest.mark.parametrize("protocol", [0, 1])
    def test_text_pickle_is_refused_unrun(self, tmp_path, attack, name, protocol):
        canary = tmp_path / "canary"
        refusal(tmp_path, pickle.dumps(attack(canary), protocol))
        refusal(tmp_path, old_layout(pickle.dumps(attack(canary), protocol)))
        assert not canary.exists()


@pytest.mark.parametrize("pickled", [
    b"\x80\x02cos\nsystem\n.",
    b"\x80\x02ctorch\nload\n)R.",
    b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_numpy\n)R.",
    b"\x80\x02ctorch\nFloatStorage\n)R.",
    b"\x80\x02ctorch\nFloatStorage\n)\x81.",
    b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    b"\x80\x02(ccollections\nOrderedDict\no.",
    b"\x80\x02(icollections\nOrderedDict\n.",
    b"\x80\x02\x82\x01.",
    b"\x80\x02}K\x01b.",
    b"\x80\x02ccollections\nOrderedDict\n.",
    b"\x80\x02Pname\n.",
    b"\x80\x05\x97.",
    b"\x80\x04\x8f.",
])  # fmt: skip
def test_what_state_dicts_do_not_use_is_refused(tmp_path, pickled):
    refusal(tmp_path, pickled)
    refusal(tmp_path, old_layout(pickled))
    refusal(tmp_path, zip_layout(pickled))


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "a\u2028b", "\x85"])
def test_names_in_a_pickle_cannot_break_the_line(tmp_path, name):
    def text(s):
        return b"\x8c" + bytes([len(s.encode())]) + s.encode()

    refusal(tmp_path, old_layout(b"\x80\x04" + text(f"os{name}") + text("system") + b"\x93."))
    refusal(tmp_path, zip_layout(b"\x80\x04" + text("os") + text(f"system{name}") + b"\x93."))


STATE = {
    "module.a.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "b": torch.tensor(3),
    "c": torch.arange(9.0)[3:],
    "d": nn.Parameter(torch.ones(2)),
}


class TestDamage:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_file_cut_at_any_of_forty_places_is_refused(self, tmp_path, layout):
        data = saved(STATE, layout)
        assert list(read(tmp_path, data)) == list(STATE)
        for length in np.linspace(0, len(data) - 1, 40).astype(int):
            refusal(tmp_path, data[:length])

    @needs_weights
    def test_published_file_cut_at_any_of_forty_places_is_refused(self, tmp_path):
        data = SAMPLES[0].read_bytes()
        for length in np.linspace(0, len(data) - 1, 40).astype(int):
            refusal(tmp_path, data[:length])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_flipped_bytes_give_arrays_or_one_line(self, tmp_path, layout):
        original = saved(STATE, layout)
        flips = st.lists(
            st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)), min_size=1, max_size=6, unique=True
        )

        @settings(
            max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
        )
        @given(flips)
        def check(changes):
            data = bytearray(original)
            for position, value in changes:
                data[position] = value
            (tmp_path / "flipped.pth").write_bytes(data)
            arrays_or_one_line(tmp_path / "flipped.pth")

        check()

    def test_every_byte_of_a_zips_directory_may_be_wrong(self, tmp_path):
        """All bytes behind the last tensor: sizes, offsets, names and flags of the archive."""
        original = saved({"a": torch.ones(1)}, "zip")
        for position in range(original.index(b"PK\x01\x02"), len(original)):
            for value in (0x00, 0x80, 0xFF):
                data = bytearray(original)
                data[position] = value
                (tmp_path / "flipped.pth").write_bytes(data)
                arrays_or_one_line(tmp_path / "flipped.pth")

    def test_tensors_outside_their_storage_are_refused(self, tmp_path):
        assert list(read(tmp_path, one_tensor(4, (2, 2), (2, 1), numbers=4))) == ["a"]
        for count, size, stride, offset in [
            (4, (5,), (1,), 0), (4, (4,), (1,), 1), (4, (2, 2), (3, 1), 1), (4, (3, 3), (1, 1), 0),
            (4, (2**39,), (0,), 0),
            (4, (2, 2), (1,), 0), (4, (-1,), (1,), 0), (4, (1,), (-1,), 0), (4, (1,), (1,), -1), (4, (1,), (1,), 2**62),
            (4, (1,) * 9, (1,) * 9, 0), (4, (2, 2), (2**39, 2**39), 0), (4, (1.0,), (1,), 0), (4, ("1",), (1,), 0),
        ]:  # fmt: skip
            refusal(tmp_path, one_tensor(count, size, stride, offset, numbers=4))

    def test_shapes_without_elements_are_read_or_refused(self, tmp_path):
        """No element, but dimensions whose product is beyond every array."""
        refusal(tmp_path, one_tensor(1, (0, 2**39, 2**39), (1, 1, 1)))

    def test_storages_that_do_not_match_are_refused(self, tmp_path):
        good = tensor_opcodes(1, (1,), (1,))
        pickled = b"\x80\x02}" + opcodes("a") + good + b"s."
        size = struct.pack("<q", 1)
        assert list(read(tmp_path, old_layout(pickled, ["0"], size + bytes(4)))) == ["a"]
        for data in (
            old_layout(pickled, [], b""),
            old_layout(pickled, ["1"], size + bytes(4)),
            old_layout(pickled, ["0"], struct.pack("<q", 2) + bytes(8)),
            old_layout(pickled, ["0"], struct.pack("<q", -1) + bytes(4)),
            old_layout(pickled, ["0"], b"\x01"),
            zip_layout(pickled),
            zip_layout(pickled, [("data/0", bytes(8))]),
            zip_layout(pickled, [("data/0", b"")]),
        ):
            refusal(tmp_path, data)


class TestBombs:
    """Small files that ask for much: refused at once, in little memory."""

    def quickly(self, tmp_path, data):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        tracemalloc.start()
        start = time.perf_counter()
        try:
            refusal(tmp_path, data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 50e6 + 100 * len(data), f"{peak / 1e6:.0f} MB"
        assert time.perf_counter() - start < 20

    @pytest.mark.parametrize("wrap", [bytes, old_layout, zip_layout], ids=["bare", "old", "zip"])
    def test_deep_nesting(self, tmp_path, wrap):
        depth = 100_000
        self.quickly(tmp_path, wrap(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."))
        self.quickly(tmp_path, wrap(b"\x80\x02)" + b"\x85" * depth + b"."))
        self.quickly(tmp_path, wrap(b"\x80\x02" + b"(" * depth + b"."))
        inner = b"]" * depth + b"a" * (depth - 1)
        self.quickly(tmp_path, wrap(b"\x80\x02}" + opcodes("state_dict") + inner + b"s."))

    def test_deep_nesting_as_the_name_of_a_storage(self, tmp_path):
        depth = 100_000
        key = b"]" * depth + b"a" * (depth - 1)
        self.quickly(tmp_path, one_tensor(1, (1,), (1,), key=key))
        self.quickly(tmp_path, zip_layout(b"\x80\x02}" + opcodes("a") + tensor_opcodes(1, (1,), (1,), key=key) + b"s."))

    def test_lists_of_the_same_list_as_the_name_of_a_storage(self, tmp_path):
        """6 levels of 12: nothing as objects, 30 MB as text; 20 levels would be more than any memory."""
        key = b"]q\x00" + b"".join(b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 12 + b"e" for i in range(6))
        key = b"(" + key + b"t"  # one object: a tuple of the levels
        path = tmp_path / "weights.pth"
        path.write_bytes(one_tensor(1, (1,), (1,), key=key))
        tracemalloc.start()
        try:
            refusal(tmp_path, path.read_bytes())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 5e6, f"{peak / 1e6:.0f} MB for a file of {path.stat().st_size} bytes"

    @pytest.mark.parametrize("wrap", [old_layout, zip_layout], ids=LAYOUTS)
    def test_lists_of_the_same_list(self, tmp_path, wrap):
        levels = b"".join(b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 10 + b"e" for i in range(100))
        self.quickly(tmp_path, wrap(b"\x80\x02}" + opcodes("a") + b"(]q\x00" + levels + b"ts."))

    @pytest.mark.parametrize("wrap", [bytes, old_layout, zip_layout], ids=["bare", "old", "zip"])
    def test_huge_memo(self, tmp_path, wrap):
        puts = b"".join(b"r" + struct.pack("<I", i * 40_000) for i in range(100_000))
        self.quickly(tmp_path, wrap(b"\x80\x02]" + puts + b"."))

    @pytest.mark.parametrize("wrap", [bytes, old_layout, zip_layout], ids=["bare", "old", "zip"])
    @pytest.mark.parametrize("opcode", [
        b"X" + struct.pack("<I", 2**32 - 1), b"\x8d" + struct.pack("<Q", 2**62), b"\x8e" + struct.pack("<Q", 2**63),
        b"\x8b" + struct.pack("<i", 2**31 - 1), b"\x8b" + struct.pack("<i", -5), b"T" + struct.pack("<i", 2**31 - 1),
        b"\x95" + struct.pack("<Q", 2**62),
    ])  # fmt: skip
    def test_huge_declared_lengths(self, tmp_path, wrap, opcode):
        self.quickly(tmp_path, wrap(b"\x80\x04" + opcode + b"abc."))

    @pytest.mark.parametrize("count", [2**31, 2**40, 2**62, 2**63 - 1])
    def test_huge_declared_tensors(self, tmp_path, count):
        side = min(count, 2**39)
        self.quickly(tmp_path, one_tensor(count, (side,), (1,)))
        pickled = b"\x80\x02}" + opcodes("a") + tensor_opcodes(count, (side,), (1,)) + b"s."
        self.quickly(tmp_path, zip_layout(pickled, [("data/0", bytes(4))]))

    @pytest.mark.parametrize("place", ["magic", "protocol", "content"])
    def test_huge_integers(self, tmp_path, place):
        huge = b"\x80\x02\x8b" + struct.pack("<i", 5000) + b"\x11" * 5000 + b"."
        data = {"magic": huge, "protocol": pickle.dumps(MAGIC, 2) + huge, "content": old_layout(huge)}
        self.quickly(tmp_path, data[place])
