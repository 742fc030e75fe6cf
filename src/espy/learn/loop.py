"""The training loop: one for all networks, on one device or many processes.

What decides a weight is the recipe alone. Every random number comes from (seed, epoch, index) or (seed, step), so a run needs
only its weights, the optimiser's and the average's state and the step to go on as if it had never stopped.
"""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.profiler import record_function

from espy import spec as specs
from espy.data.loader import Batch, Order, Samples, batches, lost_worker, steps_in_epoch
from espy.errors import ModelError, TrainingError
from espy.evaluation import METRICS, Measured, evaluate, number
from espy.header import Card, Header, Metric, Preprocess, write_safetensors
from espy.learn import checkpoint
from espy.learn.average import Average
from espy.learn.folder import RunFolder
from espy.learn.losses import Pictures, Pixels, Priors, frequency_weights, mixed
from espy.learn.processes import gathered, make_fabric, most, processes_here, together
from espy.learn.recipe import FOR, Loss, Recipe, RecipeError, differences, from_dict, read_recipe, to_dict
from espy.learn.schedule import factor
from espy.learn.sets import Sets, open_sets
from espy.learn.start import start
from espy.learn.watch import Progress, Watch
from espy.measure.mapping import read_mapping
from espy.measure.sheet import Row, contact_sheet, grid
from espy.nn.build import build, weights_of
from espy.nn.deployed import deploy
from espy.nn.learner import Learner
from espy.picture.read import MAX_PIXELS
from espy.run.engines.torch import Torch
from espy.run.predictor import Model
from espy.run.result import Segmentation

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the lines of metrics.jsonl, the best weights' file, and their `metric`, None without one."""

    folder: Path
    metrics: list[dict[str, Any]]
    best: Path
    metric: str
    score: float | None


@dataclass
class State:
    """What a checkpoint holds beside tensors: steps done, the best figure so far, the loss summed over this epoch's steps."""

    step: int = 0
    best: float | None = None
    score: float | None = None
    loss_sum: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)


def train(
    recipe: Recipe | str | Path, *, folder: str | Path | None = None, resume: bool = False, watch: Watch | None = None,
    **overrides: Any,
) -> Run:  # fmt: skip
    """Follow a recipe and return the finished run.

    `recipe`: a file or a Recipe; `overrides` are its fields by name (`epochs=3`). `folder`: where the run is kept, `runs/` and
    the recipe's name unless given; it must be empty, or hold this run and `resume` be true. Raises EspyError, one line, for
    what cannot work; the last checkpoint stays whole. SIGINT and SIGTERM end it after a whole step: SystemExit, 130 or 143.
    """
    watch = watch or Watch()
    if not isinstance(recipe, Recipe):
        folder = folder or Path("runs", Path(recipe).stem)
        recipe = read_recipe(recipe, overrides)
    elif overrides:
        raise RecipeError("overrides go with a recipe's file: build the Recipe with them")
    if folder is None:
        raise RecipeError("a run of a Recipe in memory needs a folder=")
    fabric = make_fabric(recipe)
    kept = None
    try:
        with together(fabric):
            sets = open_sets(recipe.data, recipe.network.get("task", "segment"), say=watch.say, advance=watch.look)
            recipe = resolve(recipe, sets)
            kept = RunFolder(Path(folder), recipe, resume=resume) if fabric.is_global_zero else None
        saved = Path(folder, "last.ckpt")
        if resume and not saved.is_file():
            watch.say(f"{folder}: holds no checkpoint to go on from: starts with the first step")
        loop = Loop(recipe, sets, fabric, kept, watch, saved if resume and saved.is_file() else None)
        with together(fabric):
            loop.begin(Path(folder))
        loop.run()
    finally:
        if kept is not None:
            kept.close()
    lines = kept.lines() if kept else []
    return Run(Path(folder), lines, Path(folder) / "best.safetensors", METRICS[loop.task], loop.state.best)


def resolve(recipe: Recipe, sets: Sets) -> Recipe:
    """The recipe with the set's classes, every choice of the network, and class weights in numbers. Raises RecipeError."""
    classes = len(sets.labels)
    given = recipe.network.get("classes", classes)
    if given != classes:
        raise RecipeError(f"[network] classes is {given}, the set has {classes}: leave it out")
    spec = specs.from_dict({**recipe.network, "classes": classes})
    for (section, name), tasks in FOR.items():
        given = getattr(getattr(recipe, section), name)
        if spec.task not in tasks and given != getattr(type(getattr(recipe, section))(), name):
            raise RecipeError(
                f"[{section}] {name} is for the task {' or '.join(tasks)}, this network's is {spec.task}: leave it out"
            )
    crop = recipe.augment.crop
    if spec.task == "detect" and crop and crop[0] != crop[1]:
        raise RecipeError(f"[augment] crop is height {crop[0]}, width {crop[1]}: a detector sees squares")
    if spec.task != "classify" and recipe.data.resize == "short":
        raise RecipeError(
            f"[data] resize is short, which cuts the sides off: this network's task is {spec.task}: leave it out"
        )
    weights = recipe.loss.class_weights
    if weights == "frequency":
        weights = tuple(round(w, 6) for w in frequency_weights(sets.counts))
    elif isinstance(weights, tuple) and (
        len(weights) != classes or not all(0 <= w < math.inf for w in weights) or not any(weights)
    ):
        raise RecipeError(
            f"[loss] class_weights is {list(weights)}: give {classes} numbers, one a class of the set, none negative, not all 0"
        )
    replace = msgspec.structs.replace
    return replace(recipe, network=specs.to_dict(spec), loss=replace(recipe.loss, class_weights=weights))


def header_of(recipe: Recipe, labels: Any, metrics: tuple[Metric, ...] = ()) -> Header:
    """The header of the run's model files."""
    data, card = recipe.data, recipe.card
    spec = specs.from_dict(recipe.network)
    resize = data.resize if data.resize != "auto" else "short" if spec.task == "classify" else "stretch"
    preprocess = Preprocess(data.size, multiple=data.multiple, resize=resize)
    about = Card(card.title or f"{recipe.network['network']} on {data.set}", card.data or data.set, card.terms, metrics)
    return Header.of(spec, labels, preprocess, about)


def optimiser_of(learner: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser: weights of convolutions decay, those of one dimension (norms, slopes, biases) do not."""
    train = recipe.train
    decayed = [p for p in learner.parameters() if p.dim() > 1]
    others = [p for p in learner.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if train.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=train.rate, momentum=train.momentum)
    return torch.optim.AdamW(groups, lr=train.rate)


def objective_of(task: str, loss: Loss, device: torch.device) -> Pixels | Pictures | Priors:
    """What a task makes small."""
    given = loss.class_weights if isinstance(loss.class_weights, tuple) else None
    weights = torch.tensor(given, device=device) if given else None
    if task == "classify":
        return Pictures(smoothing=loss.smoothing, weights=weights)
    if task == "detect":
        return Priors(negatives=loss.negatives, boxes=loss.boxes)
    return Pixels(
        cross_entropy=loss.cross_entropy, dice=loss.dice, ohem=loss.ohem, smoothing=loss.smoothing, weights=weights
    )


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as metrics.jsonl has them."""
    return {
        name: rounded(value) if isinstance(value, Mapping) else None if value is None else round(value, 6)
        for name, value in figures.items()
    }


class Loop:
    """A run in progress, from its start or from the checkpoint `saved`."""

    def __init__(
        self, recipe: Recipe, sets: Sets, fabric: Fabric, kept: RunFolder | None, watch: Watch, saved: Path | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.sets, self.fabric, self.kept, self.watch = recipe, sets, fabric, kept, watch
        self.saved = saved
        train, loss = recipe.train, recipe.loss
        self.per_epoch = steps_in_epoch(len(sets.train), train.batch)
        self.steps = self.per_epoch * train.epochs
        self.state = State()
        self.header = header_of(recipe, sets.labels)

        network = build(self.header.spec, seed=train.seed)
        self.taken = None
        with together(fabric):
            if train.init and saved is None:
                mapping = read_mapping(train.init_mapping) if train.init_mapping else None
                self.taken = start(network, sets.labels, train.init, mapping)
        plain = copy.deepcopy(network)  # as a user's: training's layout in memory would change the last bits
        self.deployed = deploy(plain, self.header.preprocess).to(fabric.device).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.learner = Learner(
                network, self.header.preprocess, auxiliary=loss.auxiliary > 0,
                channels_last=train.channels_last and fabric.device.type != "cpu",
            )  # fmt: skip
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            self.learner = nn.SyncBatchNorm.convert_sync_batchnorm(self.learner)  # type: ignore[no-untyped-call]
        self.optimiser = optimiser_of(self.learner, recipe)
        self.module, self.stepper = fabric.setup(self.learner, self.optimiser)
        self.average = Average(self.learner.network, train.ema)
        self.task = self.header.task
        self.objective = objective_of(self.task, loss, fabric.device)
        self.samples = Samples(
            sets.train, recipe.data.size, recipe.augment, train.seed, processes_here(),
            covering=self.header.preprocess.resize == "short", threshold=loss.match,
        )  # fmt: skip
        self._stop = 0

    def begin(self, folder: Path) -> None:
        """Decode the set, take the checkpoint where there is one, say what was found."""
        say = self.watch.say
        if self.saved is not None:
            self.restore(self.saved)
        if self.kept is not None:
            self.kept.rewind(self.state.step)
            self.kept.open_events(self.state.step)
            self.kept.note_environment(
                torch=torch.__version__, device=str(self.fabric.device), processes=self.fabric.world_size,
                threads=torch.get_num_threads(), precision=str(self.fabric._precision.precision), step=self.state.step,
            )  # fmt: skip
            for line in self.taken.lines() if self.taken else ():
                say(line)
        if not self.samples.keep(self.watch.look):
            say(f"{self.recipe.data.set}: {self.samples.bytes / 1e9:.1f} GB decoded do not fit into half of the free memory: "
                "pictures are read from disk in every epoch")  # fmt: skip
        if self.state.step:
            say(f"{folder}: goes on after step {self.state.step} of {self.steps}")

    # Steps

    def run(self) -> None:
        """All steps that are left."""
        train, fabric = self.recipe.train, self.fabric
        cuda = fabric.device.type == "cuda"
        workers = train.workers if train.workers >= 0 else min(16, os.cpu_count() or 1) if cuda else 0
        first, saved, busy = self.state.step, time.monotonic(), 0.0
        source = batches(self.samples, self.order(self.steps), workers=workers, pin=cuda)
        with self._signals(), lost_worker(), closing(source):
            while self.state.step < self.steps:
                began = time.monotonic()
                with together(fabric):
                    parts = list(islice(source, train.accumulate))
                self.state.loss_sum += self.step(parts)
                self.state.step += 1
                busy += time.monotonic() - began
                epoch, place = divmod(self.state.step, self.per_epoch)
                per_step = busy / (self.state.step - first)
                self._report(epoch, place, per_step)
                if place == 0:
                    with together(fabric):
                        self._end_epoch(epoch, train.batch / per_step)
                stop, due = most(fabric, self._stop, time.monotonic() - saved > 60 * train.save_minutes)
                if place == 0 or stop or due:
                    with together(fabric):
                        self.save()
                    saved = time.monotonic()
                if stop:
                    self.watch.say(f"stopped after step {self.state.step} of {self.steps}: go on with --resume")
                    raise SystemExit(stop)
        fabric.barrier()

    def order(self, end: int) -> Order:
        """This process's pictures of the steps that are left up to `end`."""
        train, fabric = self.recipe.train, self.fabric
        return Order(
            len(self.sets.train), train.batch, train.seed, self.state.step, end, fabric.global_rank, fabric.world_size,
            train.accumulate,
        )  # fmt: skip

    def step(self, parts: list[Batch]) -> float:
        """One step of the optimiser; its loss. Raises TrainingError where it is not finite."""
        train, fabric, step = self.recipe.train, self.fabric, self.state.step
        rate = train.rate * factor(
            step, self.steps, warm_up=round(train.warm_up * self.per_epoch), schedule=train.schedule, power=train.power
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(train.seed << 32 ^ step << 8 ^ fabric.global_rank)  # dropout
        self.module.train()
        if train.freeze_norm:
            for module in self.learner.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        pairs = [self._pair(part, place) for place, part in enumerate(parts)]
        truths = [truth for _, truth in pairs]
        counts = self._total(sum(self.objective.counts(truth) for truth in truths))  # type: ignore[arg-type]
        value = torch.zeros((), device=fabric.device)
        for index, (images, truth) in enumerate(pairs):
            with fabric.no_backward_sync(self.module, enabled=index < len(parts) - 1):
                with record_function("espy::forward"):
                    outputs = self.module(images)
                with record_function("espy::loss"):
                    shares = (1.0, self.recipe.loss.auxiliary)
                    losses = [
                        share * self.objective.loss(self.objective.sums(output, truth), counts)
                        for share, output in zip(shares, outputs, strict=False)
                    ]
                    loss = torch.stack(losses).sum()
                with record_function("espy::backward"):
                    fabric.backward(loss * fabric.world_size)  # the processes' gradients are averaged
            value += loss.detach()
        total = float(self._total(value))
        if not math.isfinite(total):
            raise TrainingError(self._not_finite("the loss", total, parts))
        limit = train.clip or math.inf
        norm = float(fabric.clip_gradients(self.module, self.stepper, max_norm=limit, error_if_nonfinite=False))
        scaled = getattr(fabric._precision, "scaler", None) is not None  # float16 leaves such a step out and goes on
        if not math.isfinite(norm) and not scaled:
            raise TrainingError(self._not_finite("the gradient's norm", norm, parts))
        with record_function("espy::optimiser"):
            self.stepper.step()
            self.stepper.zero_grad(set_to_none=True)
        with record_function("espy::average"):
            self.average.update(self.learner.network, step + 1)
        return total

    def _pair(self, part: Batch, place: int) -> tuple[Tensor, Tensor]:
        """A micro-batch on the device as the objective takes it: of classes their shares, mixed where the recipe says so."""
        device, loss = self.fabric.device, self.recipe.loss
        images, truth = (t.to(device, non_blocking=True) for t in (part.images, part.truth))
        if self.task != "classify":
            return images, truth
        shares = nn.functional.one_hot(truth, len(self.sets.labels)).float()
        rng = np.random.default_rng([self.recipe.train.seed, self.state.step, place, self.fabric.global_rank])
        return mixed(images, shares, mixup=loss.mixup, cutmix=loss.cutmix, rng=rng)

    def _total(self, value: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return value
        total: Any = self.fabric.all_reduce(value, reduce_op="sum")
        return total

    def _not_finite(self, what: str, value: float, parts: list[Batch]) -> str:
        epoch, place = divmod(self.state.step, self.per_epoch)
        indices = gathered(self.fabric, [index for part in parts for index in part.indices])
        files = [self.sets.train.items[index].picture.name for own in indices for index in own]
        return (
            f"{what} is {value} in step {self.state.step + 1} (epoch {epoch + 1}, batch {place + 1} of {self.per_epoch}): the "
            f"last checkpoint is from before; lower train.rate, or train in float32; the batch's files: {', '.join(files)}"
        )

    # Looking

    def _end_epoch(self, epoch: int, images_s: float) -> None:
        validate, state = self.recipe.validate, self.state
        line: dict[str, Any] = {
            "epoch": epoch, "step": state.step, "loss": state.loss_sum / self.per_epoch,
            "rate": self.optimiser.param_groups[0]["lr"], "images_s": round(images_s, 3),
        }  # fmt: skip
        state.loss_sum = 0.0
        last, found = epoch == self.recipe.train.epochs, None
        if self.kept is not None and self.sets.validate is not None and (epoch % validate.every == 0 or last):
            found = self.validate()
            line |= rounded(found.figures())
            state.score = number(found.figure)
            if state.best is None or (state.score is not None and state.score > state.best):
                state.best = state.score
                self._write_weights(self.kept.best, epoch, found)
            if validate.pictures:
                self._draw(epoch)
        elif self.kept is not None and self.sets.validate is None and last:
            self._write_weights(self.kept.best, epoch, None)
        if self.kept is not None:
            if last:
                self._write_weights(self.kept.last, epoch, found)
            self.kept.add(line)

    @contextmanager
    def _model(self) -> Iterator[Model]:
        """The averaged weights as the model that a user would load."""
        self.deployed.network.load_state_dict(self.average.network.state_dict())
        yield Model(Path("run"), self.header, Torch.around(self.deployed), None, None, MAX_PIXELS)

    def validate(self) -> Measured:
        """What `espy eval` says of the averaged weights."""
        assert self.sets.validate is not None
        with self._model() as model:
            found: Measured = evaluate(model, self.sets.validate, split=None)
            return found

    def _draw(self, epoch: int) -> None:
        data = self.sets.validate
        assert data is not None
        assert self.kept is not None
        count = min(len(data), self.recipe.validate.pictures)
        rows, drawn = [], []
        with self._model() as model:
            for index in np.linspace(0, len(data) - 1, count).round().astype(int):
                image, truth = data.read(int(index))
                result = model(image)
                if isinstance(result, Segmentation):
                    rows.append(Row(data.items[index].picture.name, image, truth, result.mask))
                else:
                    drawn.append(result.drawn())
        sheet = contact_sheet(rows, self.sets.labels) if rows else grid(drawn)
        self.kept.picture(f"epoch-{epoch:04d}", sheet, self.state.step)

    def _write_weights(self, path: Path, epoch: int, found: Measured | None) -> None:
        metrics: tuple[Metric, ...] = ()
        if found is not None and not math.isnan(found.figure):
            held = f"held out of {self.recipe.data.train}" if self.recipe.data.hold_out else self.recipe.data.validate
            h, w = self.recipe.data.size
            metrics = (
                Metric(
                    found.metric, round(100 * found.figure, 2), held, f"epoch {epoch}, height {h}, width {w}, one scale"
                ),
            )
        arrays = self._finite(weights_of(self.average.network))
        write_safetensors(path, header_of(self.recipe, self.sets.labels, metrics), arrays, force=True)

    def _report(self, epoch: int, place: int, per_step: float) -> None:
        state = self.state
        self.watch.progress(
            Progress(
                epoch + (place > 0), self.recipe.train.epochs, state.step, self.steps, state.loss_sum / (place or self.per_epoch),
                METRICS[self.task], state.score, self.recipe.train.batch / per_step, per_step * (self.steps - state.step),
            )
        )  # fmt: skip

    # Stopping and going on

    def save(self) -> None:
        """Write last.ckpt."""
        if self.kept is not None:
            self.state.scaler = self.fabric._precision.state_dict()
            state = {**vars(self.state), "recipe": to_dict(self.recipe), "set": self._set()}
            checkpoint.write(self.kept.checkpoint, self.arrays(), state)

    def _set(self) -> dict[str, Any]:
        """Facts of the set by which another one is told: a run goes on with the same pictures alone."""
        sets = self.sets
        return {
            "training pictures": len(sets.train), "validation pictures": len(sets.validate or ()),
            "occurrences of each class": list(sets.counts),
        }  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """Every tensor that a run needs to go on."""
        tensors = {f"learner.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.network.state_dict().items()}
        for name, parameter in self.learner.named_parameters():
            kept = self.optimiser.state.get(parameter, {})
            tensors |= {f"optimiser.{name}.{key}": value for key, value in kept.items() if isinstance(value, Tensor)}
        return self._finite(tensors)

    def _finite(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """As arrays. Raises TrainingError where one must not replace what is on disk."""
        arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise TrainingError(
                    f"{name} is not finite after step {self.state.step}: the last checkpoint is from before; lower train.rate"
                )
        return arrays

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ModelError where it is damaged or not of this run."""
        arrays, state = checkpoint.read(path)
        was, now = state.get("set", {}), self._set()
        other = [f"set's {name}: {was.get(name)} -> {now[name]}" for name in now if was.get(name) != now[name]]
        other += differences(from_dict(state.get("recipe", {}), where=str(path)), self.recipe)
        if other:
            raise ModelError(
                f"{path}: of a run with another recipe or set ({'; '.join(other)}): put back what it was, or start anew"
            )
        try:
            self._load(arrays)
            self.state = State(**{name: state[name] for name in vars(State())})
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(f"{path}: does not fit this version's network ({reason}): start anew") from None
        if self.state.scaler:
            self.fabric._precision.load_state_dict(self.state.scaler)

    def _load(self, arrays: Mapping[str, np.ndarray]) -> None:
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.learner.load_state_dict(part("learner."))
        self.average.network.load_state_dict(part("average."))
        for name, parameter in self.learner.named_parameters():
            for key, tensor in part(f"optimiser.{name}.").items():
                like = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty(tensor.shape)
                self.optimiser.state[parameter][key] = like.copy_(tensor)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM finish the step; a second one does what it does elsewhere, and ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = STOPPED[signal.Signals(number)]
            put_back()
            with suppress(RuntimeError):  # where the signal came amid another line
                self.watch.say("stopping after this step; again to stop at once")

        def put_back() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        before = {number: signal.getsignal(number) for number in STOPPED}
        try:
            for number in STOPPED:
                signal.signal(number, stop)
            yield
        finally:
            put_back()
