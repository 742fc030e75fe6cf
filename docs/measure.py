"""Measure what README.md and docs state of speed and memory: `make bench`, or `python docs/measure.py NAME...`.

Names: `prepare` (reading and preparing a 1920x1080 JPEG), `folder` (a folder of 100 such photos against the engine alone),
`memory` (a 100-megapixel photo in tiles), `tiles` (how far tiled masks differ from untiled ones; needs torch), `start`,
`training` (images/s of the loop against a plain one, in turn), `loader` (images/s of the loader alone), `tasks` (images/s of loader
and network for classes and boxes), `rewrites` (deployed files against plain exports, each rewrite left out in turn), `sizes` (the
same at five sizes), `native` (the project's own engine against stock ones), `growth` (the same from small pictures to large ones),
`roofline` (its units against the machine's limits), `bfloat16` (beside its float32), `kernels` (each kind of unit alone),
`formats` (every one that can be made here), `precisions` (float32, bfloat16, int8 on CamVid; needs nncf).
Every figure is printed with the machine it was measured on.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

import espy
from espy import bundle, cli
from espy.data.sets import Dataset
from espy.header import read_header, size_fits
from espy.machine import processor
from espy.picture.frame import Frame
from espy.picture.read import read
from espy.run import files

PHOTO = bundle.FOLDER / "photos" / "street_city.jpg"


def machine() -> str:
    """The machine, the load and the versions, one line."""
    import onnxruntime
    import PIL

    return (
        f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"Pillow {PIL.__version__}, ONNX Runtime {onnxruntime.__version__}"
    )


def full_hd(path: Path) -> None:
    """A 1920x1080 JPEG of the bundled street."""
    Image.open(PHOTO).convert("RGB").resize((1920, 1080), Image.Resampling.LANCZOS).save(path, quality=90)


def prepare() -> None:
    """Milliseconds of one core to read and prepare, best of 5 and median."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        full_hd(photo)
        model = espy.load("street", engine="onnxruntime", threads=1)
        times = []
        for _ in range(6):
            start = time.process_time()
            picture = read(photo)
            Frame.of(model.preprocess, picture.size).to_network(picture.image)
            times.append(1e3 * (time.process_time() - start))
        best, median = min(times[1:]), statistics.median(times[1:])
        print(f"prepare: 1920x1080 JPEG for 512x1024: best of 5 {best:.1f} ms, median {median:.1f} ms")


def folder(count: int = 100, rounds: int = 3) -> None:
    """Full-HD photos a second from file to mask, and with overlay and mask written, over those of the engine alone, in turn."""
    from espy.run.engines import installed

    with tempfile.TemporaryDirectory() as place:
        photos, out = Path(place) / "photos", Path(place) / "out"
        photos.mkdir()
        full_hd(photos / "000.jpg")
        for index in range(1, count):
            os.link(photos / "000.jpg", photos / f"{index:03}.jpg")
        tasks = files.find([str(photos)], out)
        for engine, threads in product(filter(installed, ("onnxruntime", "native")), (1, 2)):
            with espy.load("street", engine=engine, threads=threads) as model:
                for name, rate, share in overlapping(model, tasks, out, rounds):
                    print(f"folder: {engine}, {threads} threads, {name}: {rate:.2f} images/s, {share:.0%}", flush=True)


def overlapping(model: espy.Model, tasks: list[files.Task], out: Path, rounds: int) -> list[tuple[str, float, float]]:
    """Each way's name, images/s and share of the engine's alone, medians of the rounds."""
    image = Frame.of(model.preprocess, (1080, 1920)).to_network(read(tasks[0].source).image)[None]
    ways: dict[str, Callable[[list[files.Task]], list[Any]]] = {
        "engine alone": lambda some: [model.engine.run(image) for _ in some],
        "file to mask": lambda some: [item.result for item in model.map(task.content for task in some)],
        "predict": lambda some: [
            None if entry.error else entry for entry in files.predict(model, some, out, force=True)
        ],
    }
    model.engine.run(image)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for some in np.array_split(np.array(tasks, object), rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            assert None not in way(list(some))
            rates[name].append(len(some) / (time.perf_counter() - start))
    alone = rates["engine alone"]
    return [
        (name, statistics.median(found), statistics.median(a / b for a, b in zip(found, alone, strict=True)))
        for name, found in rates.items()
    ]


def memory() -> None:
    """Peak memory of `espy predict` on a 100-megapixel JPEG in tiles of 2048x2048."""
    with tempfile.TemporaryDirectory() as place:
        photo = Path(place) / "large.jpg"
        script = (
            "import sys; from PIL import Image\n"
            "Image.MAX_IMAGE_PIXELS = None\n"
            "Image.open(sys.argv[1]).convert('RGB').resize((10000, 10000)).save(sys.argv[2], quality=85)"
        )
        subprocess.run([sys.executable, "-c", script, str(PHOTO), str(photo)], check=True)
        for name in ("street-small", "street"):
            call = [sys.executable, "-c", "from espy.cli import main; main()", "predict", str(photo), "--model", name,
                    "--tile", "2048x2048", "--out", str(Path(place) / name)]  # fmt: skip
            start = time.perf_counter()
            child = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            assert status == 0
            print(
                f"memory: 10000x10000 with {name}: {usage.ru_maxrss / 1e6:.2f} GB, {time.perf_counter() - start:.0f} s"
            )


def tiles() -> None:
    """Share of the pixels in which a tiled mask differs from the untiled one, 2048x4096 in tiles."""
    weights = Path(os.environ.get("ESPY_WEIGHTS") or Path(__file__).resolve().parents[2] / "shared" / "weights")
    picture = Image.open(PHOTO).convert("RGB").resize((4096, 2048), Image.Resampling.LANCZOS)
    models = {"street": None, "street-small": None}
    models |= {f"ESPNet alpha 2/{q}": weights / f"espnet_decoder_p2_q{q}.pth" for q in (3, 8)}  # type: ignore[dict-item]
    for name, checkpoint in models.items():
        if checkpoint is not None and not checkpoint.is_file():
            print(f"tiles: {name}: its checkpoint is not at hand (ESPY_WEIGHTS)")
            continue
        with tempfile.TemporaryDirectory() as place:
            path: str | Path = name
            engine = "onnxruntime"
            if checkpoint is not None:
                from espy.header import write_safetensors

                path, engine = Path(place) / "model.safetensors", "torch"
                published = espy.load_published(checkpoint)
                write_safetensors(path, published.header, published.arrays)
            with espy.load(path, engine=engine, size="native") as model:
                whole = model(picture).mask
            for tile, overlap in (((1024, 2048), None), ((512, 1024), None), ((1024, 2048), 0)):
                with espy.load(path, engine=engine, tile=tile, overlap=overlap) as model:
                    differs = float(np.mean(model(picture).mask != whole))
                    shared = model.tiling.overlap if model.tiling else 0
                print(f"tiles: {name}: tiles {tile[0]}x{tile[1]}, overlap {shared}: {differs:.3%} of the pixels differ")


def start() -> None:
    """Seconds of processor time of `import espy` and `espy --help`, best of 5."""
    for what, code in (("import espy", "import espy"), ("espy --help", "from espy.cli import main; main(['--help'])")):
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        print(f"start: {what}: {min(times):.3f} s")


TRAIN_SIZE, TRAIN_BATCH = (360, 480), 8


def training_set(root: Path, pictures: int = 32) -> str:
    """A set of parts of the bundled street, masks by `street-small`; its KIND:PATH."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    photo = Image.open(PHOTO).convert("RGB").resize((1440, 1080), Image.Resampling.LANCZOS)
    with espy.load("street-small", engine="onnxruntime", threads=2) as model:
        mask = Image.fromarray(model(photo).mask % 11)
    rng = np.random.default_rng(0)
    for index in range(pictures):
        x, y = int(rng.integers(0, 960)), int(rng.integers(0, 720))
        box = (x, y, x + 480, y + 360)
        photo.crop(box).save(root / "images" / f"{index:03}.jpg", quality=95)
        mask.crop(box).save(root / "masks" / f"{index:03}.png")
    (root / "classes.txt").write_text("".join(f"class {k}\n" for k in range(11)))
    return f"folder:{root}"


def training(rounds: int = 3, steps: int = 2) -> None:
    """Images/s of the loop's steps, pictures varied and averaged weights kept, over those of a plain loop.

    The plain one is eager float32 [N, C, H, W] with its batch ready, cross-entropy and AdamW. ESPNetv2 s = 2.0, 11 classes.
    """
    import torch

    from espy.data.loader import batches
    from espy.learn.loop import Loop, resolve
    from espy.learn.processes import make_fabric
    from espy.learn.recipe import from_dict
    from espy.learn.sets import open_sets
    from espy.learn.watch import Watch

    with tempfile.TemporaryDirectory() as place:
        network = {"network": "espnetv2", "width": 2.0}
        data = {"set": training_set(Path(place)), "size": list(TRAIN_SIZE), "multiple": 1}

        def loop_of(precision: str) -> Callable[[], None]:
            train = {"batch": TRAIN_BATCH, "precision": precision}
            recipe = from_dict({"network": network, "data": data, "train": train})
            sets = open_sets(recipe.data)
            recipe = resolve(recipe, sets)
            loop = Loop(recipe, sets, make_fabric(recipe), None, Watch())
            loop.samples.keep()
            source = batches(loop.samples, loop.order((1 + rounds) * steps), workers=0)

            def run() -> None:
                for _ in range(steps):
                    loop.step([next(source)])
                    loop.state.step += 1

            return run

        plain_network = espy.build({**network, "classes": 11})
        optimiser = torch.optim.AdamW(plain_network.parameters(), lr=1e-3)
        images = torch.randn(TRAIN_BATCH, 3, *TRAIN_SIZE)
        truth = torch.randint(0, 11, (TRAIN_BATCH, *TRAIN_SIZE))

        def plain() -> None:
            for _ in range(steps):
                torch.nn.functional.cross_entropy(plain_network(images), truth).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                optimiser.zero_grad()

        def rate(run: Callable[[], None]) -> float:
            start = time.perf_counter()
            run()
            return steps * TRAIN_BATCH / (time.perf_counter() - start)

        rivals = {"plain float32": plain, "espy float32": loop_of("float32"), "espy auto": loop_of("auto")}
        for run in rivals.values():
            run()
        found = [{name: rate(run) for name, run in rivals.items()} for _ in range(rounds)]
    for name in rivals:
        rates = ", ".join(f"{one[name]:.2f}" for one in found)
        ratio = statistics.median(one[name] / one["plain float32"] for one in found)
        print(f"training: {name} {rates} images/s, median ratio {ratio:.2f}")
    print(
        f"training: height {TRAIN_SIZE[0]}, width {TRAIN_SIZE[1]}, batch {TRAIN_BATCH}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )


def loader(rounds: int = 5, count: int = 96) -> None:
    """Images/s of the loader alone, decoded set in memory, everything varied, without and with two processes."""
    from espy.data.augment import Augment
    from espy.data.kinds import open_set
    from espy.data.loader import Order, Samples, batches

    with tempfile.TemporaryDirectory() as place:
        choices = Augment(rotate=5, hue=10)
        samples = Samples(open_set(training_set(Path(place)), "train"), TRAIN_SIZE, choices, 0)
        samples.keep()
        for workers in (0, 2):
            best = 0.0
            for _ in range(rounds):
                order = Order(len(samples), TRAIN_BATCH, 0, 0, count // TRAIN_BATCH)
                start = time.perf_counter()
                done = sum(len(batch.indices) for batch in batches(samples, order, workers=workers))
                best = max(best, done / (time.perf_counter() - start))
            print(
                f"loader: height {TRAIN_SIZE[0]}, width {TRAIN_SIZE[1]}, {workers} workers: {best:.0f} images/s, best of {rounds}"
            )


def tasks(steps: int = 6) -> None:
    """Images/s of the loader and of the whole step, of one core, on the recipes' sets of classes and of boxes (ESPY_SHARED)."""
    from espy.data.loader import batches
    from espy.learn.loop import Loop, resolve
    from espy.learn.processes import make_fabric
    from espy.learn.recipe import read_recipe
    from espy.learn.sets import open_sets
    from espy.learn.watch import Watch

    root = Path(__file__).resolve().parents[1]
    sets_folder = Path(os.environ.get("ESPY_SHARED") or root.parent / "shared") / "data"
    for name, data in (("imagenette-96", "imagefolder:imagenette128"), ("bccd", "voc:bccd")):
        kind, _, folder = data.partition(":")
        recipe = read_recipe(
            root / "recipes" / f"{name}.toml", {"data.set": f"{kind}:{sets_folder / folder}", "train.threads": 1}
        )
        sets = open_sets(recipe.data, recipe.network["task"])
        recipe = resolve(recipe, sets)
        loop = Loop(recipe, sets, make_fabric(recipe), None, Watch())
        loop.samples.keep()
        source = batches(loop.samples, loop.order(1 + 2 * steps), workers=0)
        loop.step([next(source)])
        start = time.process_time()
        ready = [next(source) for _ in range(steps)]
        of_loader = steps * recipe.train.batch / (time.process_time() - start)
        start = time.process_time()
        for batch in ready:
            loop.step([batch])
        of_network = steps * recipe.train.batch / (time.process_time() - start)
        print(
            f"tasks: {name}, batch {recipe.train.batch}: loader {of_loader:.0f} images a second of one core's time, network "
            f"{of_network:.0f}, ratio {of_loader / of_network:.1f}"
        )


def plain_exports(model: str | Path, size: tuple[int, int], folder: Path, *, flush: bool = False) -> list[Path]:
    """What the framework's exporter makes of a network for one size, weights as they came or subnormal ones set to 0: a normalised
    float picture in, logits out, or the classes by an ArgMax behind them.
    """
    import torch
    from torch import nn

    from espy import load_published
    from espy.ship.export import source

    class Classes(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x).argmax(1).to(torch.uint8)

    network = load_published(model, flush=flush).network if isinstance(model, Path) else source(model)[1]
    files = [folder / f"{Path(model).stem} plain, {what}.onnx" for what in ("logits", "classes")]
    with mock.patch("espy.nn.segment.adaptive_pool", torch.nn.functional.adaptive_avg_pool2d):
        for module, file in zip((network, Classes(network)), files, strict=True):
            program = torch.onnx.export(
                module, (torch.zeros(1, 3, *size),), dynamo=True, opset_version=20, verbose=False
            )
            assert program is not None
            program.save(file)
    return files


def against_plain(
    what: str, files: list[Path], plain: list[Path], size: tuple[int, int], threads: int, engines: list[str]
) -> None:
    """Files and plain exports in one run of `espy bench`: each as many times as fast as the plain one with logits out."""
    found = espy.bench(files, engines=engines, sizes=[size], threads=[threads], against=plain)
    for row in found.rows:
        base = next(r for r in found.rows if r.case.foreign and r.case.engine == row.case.engine).alone
        cpu, wall = row.alone.cpu_ms, row.alone.wall_ms
        print(
            f"{what}: {Path(row.case.model).stem}, {size[0]}x{size[1]}, {row.case.engine}, {threads} threads: "
            f"CPU {cpu.minimum:.1f} ms, {base.cpu_ms.minimum / cpu.minimum:.2f} times as fast as plain; "
            f"wall {wall.median:.1f} ms, {base.wall_ms.median / wall.median:.2f}",
            flush=True,
        )
    print(f"{what}: {found.stamp}")


def rewrites(names: tuple[str, ...] = ("street", "street-small"), size: tuple[int, int] = (512, 1024)) -> None:
    """Deployed files against plain exports of the same network: what all rewrites buy, and each."""
    from espy.ship import export
    from espy.ship.rewrite import REWRITES, rewrite

    names_of = [one.__name__ for one in REWRITES]
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            plain, files = plain_exports(name, size, folder), []
            for left_out in ([], *([one] for one in names_of), names_of):
                said = "all" if not left_out else "none" if left_out == names_of else f"all but {left_out[0]}"
                files.append(folder / f"{name} {said}.onnx")
                with mock.patch.object(export, "rewrite", partial(rewrite, without=left_out)):
                    espy.export(name, path=files[-1], size=size)
            against_plain("rewrites", files, plain, size, 1, ["onnxruntime", "openvino"])


SIZES = [(256, 256), (360, 480), (480, 640), (512, 1024), (1024, 2048)]
SHARED = Path(os.environ.get("ESPY_SHARED", "../shared"))
ESPNET = SHARED / "weights/espnet_decoder_p2_q8.pth"


def sizes(names: tuple[str | Path, ...] = ("street", "street-small", "camvid", ESPNET)) -> None:
    """Deployed files against plain exports at every size that they take, one thread."""
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            file = folder / f"{Path(name).stem}.onnx"
            if isinstance(name, Path) and not name.is_file():
                print(f"sizes: {name}: not at hand")
                continue
            espy.export(name, path=file)
            header = read_header(file)
            assert header is not None
            for size in SIZES:
                if size_fits(header.sizes, size):
                    against_plain(
                        "sizes", [file], plain_exports(name, size, folder), size, 1, ["onnxruntime", "openvino"]
                    )


def plain_weights(model: str | Path, folder: Path) -> Path:
    """The plain weights of a bundled model, or of a published checkpoint, which is converted."""
    if not isinstance(model, Path):
        return bundle.path(model, ".safetensors")
    cli.run(["convert", str(model), "-o", str(folder / f"{model.stem}.safetensors")])
    return folder / f"{model.stem}.safetensors"


def native(
    names: tuple[str | Path, ...] = ("street", "street-small", ESPNET),
    size: tuple[int, int] = (512, 1024),
    threads: tuple[int, ...] = (2, 1),
) -> None:
    """The project's own engine on plain weights against stock engines on the plain export and on the deployed file, in one run."""
    from espy.ship.bench import measure, plan

    stock = ["onnxruntime", "openvino"]
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            weights = plain_weights(name, folder)
            deployed = folder / f"{weights.stem} deployed.onnx"
            espy.export(weights, path=deployed, size=size)
            plain = plain_exports(name, size, folder, flush=True)[:1]
            for number in threads:
                own = plan([weights], engines=["native"], sizes=[size], threads=[number])
                found = measure([*own, *plan([deployed], engines=stock, sizes=[size], threads=[number], against=plain)])
                first = found.rows[0].alone
                for row in found.rows:
                    wall, cpu = row.alone.wall_ms, row.alone.cpu_ms
                    print(
                        f"native: {row.case}: wall {wall.median:.1f} ms, fastest {wall.minimum:.1f}, CPU {cpu.minimum:.1f}; native "
                        f"{wall.median / first.wall_ms.median:.2f} times as fast (CPU {cpu.minimum / first.cpu_ms.minimum:.2f}); "
                        f"peak above bare {(row.peak_bytes - row.bare_bytes) / 1e6:.0f} MB",
                        flush=True,
                    )
                for limits in found.limits:
                    print(
                        f"native: limits with {limits.threads} threads: {limits.gflops / 2:.1f} GMAC/s, {limits.gb_s:.1f} GB/s"
                    )
                print(f"native: {found.stamp}")


def growth(
    name: str = "street",
    sizes: tuple[tuple[int, int], ...] = (
        (64, 64),
        (128, 128),
        (256, 256),
        (256, 384),
        (480, 640),
        (512, 1024),
        (1024, 2048),
        (2048, 4096),
    ),
) -> None:
    """Processor time of the native engine, and of ONNX Runtime on the deployed file, from small pictures to large ones."""
    for size in sizes:
        found = espy.bench([name], engines=["native", "onnxruntime"], sizes=[size], threads=[1], rounds=10)
        own, other = (row.alone.cpu_ms.minimum for row in found.rows)
        print(
            f"growth: {name}, {size[0]}x{size[1]}: native {own:.2f} ms, {1e6 * own / size[0] / size[1]:.1f} ns a pixel; "
            f"ONNX Runtime {other:.2f} ms, {other / own:.2f} times as long",
            flush=True,
        )
    print(f"growth: {found.stamp}")


def roofline(
    names: tuple[str | Path, ...] = ("street", "street-small", ESPNET), size: tuple[int, int] = (512, 1024)
) -> None:
    """The native engine's units, one thread: multiply-adds a second against those for each byte of maps; an SVG in docs/images."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    with tempfile.TemporaryDirectory() as place:
        weights = [plain_weights(name, Path(place)) for name in names]
        found = espy.bench(weights, engines=["native"], sizes=[size], threads=[1], profile=True)
    for row, colour in zip(found.rows, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        for one in row.operators:
            name = f"{one['operator']}, {one['calls']:g} times: {one['ms']:.2f} ms"
            gmac_s, per_byte = one["macs"] / one["ms"] / 1e6, one["macs"] / one["traffic"]
            print(f"roofline: {Path(row.case.model).stem}: {name}, {gmac_s:.1f} GMAC/s, {per_byte:.1f} a byte")
            if one["share"] < 0.005 or not one["macs"]:
                continue
            axes.scatter(per_byte, gmac_s, s=2000 * one["share"], color=colour, alpha=0.5, linewidths=0)
            if one["share"] > 0.02:
                axes.annotate(one["operator"].split()[0], (per_byte, gmac_s), fontsize=6, ha="center", va="center")
        axes.scatter([], [], color=colour, alpha=0.5, label=Path(row.case.model).stem)
    (limits,) = found.limits
    reach = np.geomspace(0.7, 60, 200)
    axes.plot(reach, np.minimum(reach * limits.gb_s, limits.gflops / 2), color="black", label="limit of one core")
    axes.set(
        xscale="log",
        ylim=(0, None),
        xlabel="multiply-adds for each byte of its maps",
        ylabel="10⁹ multiply-adds a second",
    )
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.legend(loc="lower right", title="area: share of the network's time", title_fontsize=8)
    figure.supxlabel(found.stamp, fontsize=5)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "espy"}):
        figure.savefig(Path(__file__).parent / "images" / "roofline.svg", metadata={"Date": None})
    print(f"roofline: {limits.gflops / 2:.1f} GMAC/s, {limits.gb_s:.1f} GB/s; {found.stamp}")


def bfloat16(
    names: tuple[str | Path, ...] = ("street", "street-small", ESPNET), size: tuple[int, int] = (512, 1024)
) -> None:
    """The native engine in float32 and in bfloat16, in turns."""
    from espy.ship.bench import Case, measure

    with tempfile.TemporaryDirectory() as place:
        for name in names:
            weights = plain_weights(name, Path(place))
            header = read_header(weights)
            for threads in (1, 2):
                cases = [
                    Case(str(name), weights, "native", size, threads, precision, header=header)
                    for precision in ("float32", "bfloat16")
                ]
                found = measure(cases)
                exact, rounded = (row.alone for row in found.rows)
                for what, one, other in (
                    ("fastest", exact.wall_ms.minimum, rounded.wall_ms.minimum),
                    ("CPU", exact.cpu_ms.minimum, rounded.cpu_ms.minimum),
                ):
                    print(
                        f"bfloat16: {weights.stem}, {threads} threads, {what}: float32 {one:.1f} ms, bfloat16 {other:.1f}, "
                        f"{one / other:.2f} times",
                        flush=True,
                    )
        print(f"bfloat16: {found.stamp}")


def kernels() -> None:
    """Each kind of unit of the native engine alone, one thread: tests/native/bench_kernels.py."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from espy.run.engines.native import library
    from native.bench_kernels import bench

    bench(library())


def formats(name: str = "street-small", size: tuple[int, int] = (512, 1024)) -> None:
    """Every format whose tools are installed here: bytes, how far it is off, processor time of one thread in turns."""
    from espy.ship.bench import measure, plan
    from espy.ship.export import FORMATS

    with tempfile.TemporaryDirectory() as folder:
        cases, reports = [], {}
        for form, (ending, engine, *_) in FORMATS.items():
            file = Path(folder) / f"{name}{ending}"
            try:
                reports[file] = espy.export(name, form, file, size=size)
                cases += plan([file], engines=[engine], threads=[1])
            except espy.EspyError as error:
                print(f"formats: {form}: {error}", flush=True)
        found = measure(cases)
        for row in found.rows:
            report = reports[row.case.path]
            print(
                f"formats: {report.format}: {report.bytes:,} bytes; a logit is off by "
                f"{report.score_error:.1e} of the largest, equal pixels {report.equal:.4%}; CPU {row.alone.cpu_ms.minimum:.0f} ms, "
                f"{row.case.engine} {row.version}"
            )
        print(f"formats: {found.stamp}")


PRECISIONS = {
    # engine: (format of the int8 file, precisions)
    "native": ("", ("float32", "bfloat16")),
    "onnxruntime": ("onnx", ("float32", "int8")),
    "openvino": ("openvino", ("float32", "bfloat16", "int8")),
}
CAMVID = (("camvid", (512, 1024)), (SHARED / "weights/espnet_decoder_p2_q8_camvid.pth", (360, 480)))


def precisions(models: tuple[tuple[str | Path, tuple[int, int]], ...] = CAMVID) -> None:
    """A network in every precision, one thread: times in turns, masks against PyTorch's in float32, mIoU on CamVid val.

    An int8 file is measured whatever it loses; layers go back to float where that is more than `espy quantize` allows.
    """
    from espy.data.kinds import open_set
    from espy.ship.bench import Case, measure

    data = open_set(f"camvid:{SHARED / 'data/camvid'}", None, "segment").only("val")
    photos = [item.picture for item in data.items]
    for name, size in models:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            deployed = folder / "deployed.onnx"
            plain = plain_weights(name, folder)
            espy.export(plain, path=deployed, size=size)
            cases = []
            for engine, (form, computes) in PRECISIONS.items():
                for precision in computes:
                    file = plain if engine == "native" else deployed
                    if precision == "int8":
                        file = quantised(plain, form, folder, data, size)
                    cases.append(Case(str(name), file, engine, size, 1, precision, header=read_header(file)))
            wanted = espy.load(plain, engine="torch", size=size)
            masks = [wanted(photo).mask for photo in photos]
            found = measure(cases)
            for row in found.rows:
                case, header = row.case, row.case.header
                model = espy.load(case.path, engine=case.engine, precision=case.precision, size=size)
                equal = [float((model(photo).mask == mask).mean()) for photo, mask in zip(photos, masks, strict=True)]
                said = header.export.quantized if header and header.export else None
                print(
                    f"precisions: {case}: CPU {row.alone.cpu_ms.minimum:.1f} ms, wall {row.alone.wall_ms.median:.1f}; mask pixels "
                    f"as PyTorch's {statistics.mean(equal):.4%}; mIoU {espy.evaluate(model, data, split=None).figure:.4f}"
                    + (f"; in float: {', '.join(said.kept) or 'no layer'}" if said else ""),
                    flush=True,
                )
            print(f"precisions: {found.stamp}")


def quantised(plain: Path, form: str, folder: Path, data: Dataset, size: tuple[int, int]) -> Path:
    """A model in int8, layers in float where more than the limit is lost; without them where that does not help."""
    file = folder / f"int8{'.xml' if form == 'openvino' else '.onnx'}"
    call = partial(espy.quantize, plain, form, file, size=size, threads=1, allow_slower=True, pictures=48)
    try:
        call(calibrate=f"camvid:{data.root}")
    except espy.EspyError as error:
        print(f"precisions: {error}", flush=True)
        call(calibrate=f"camvid:{data.root}", max_drop=100)
    return file


MEASURES: dict[str, Callable[[], None]] = {
    "start": start,
    "prepare": prepare,
    "folder": folder,
    "memory": memory,
    "tiles": tiles,
    "training": training,
    "loader": loader,
    "tasks": tasks,
    "rewrites": rewrites,
    "sizes": sizes,
    "native": native,
    "growth": growth,
    "roofline": roofline,
    "bfloat16": bfloat16,
    "kernels": kernels,
    "formats": formats,
    "precisions": precisions,
}

if __name__ == "__main__":
    print(f"machine: {machine()}")
    for measure in sys.argv[1:] or MEASURES:
        MEASURES[measure]()
