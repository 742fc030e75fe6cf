"""The device, the precision, and the processes of a run; torchrun starts several."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric

from espy.errors import TrainingError
from espy.learn.recipe import Recipe, RecipeError


def make_fabric(recipe: Recipe) -> Fabric:
    """The device, the precision, and the processes that torchrun started."""
    train = recipe.train
    device = train.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("train.device is cuda, but there is none: set it to auto or cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("train.device is mps, but there is none: set it to auto or cpu")
    if device == "cpu" and train.precision == "float16":
        raise RecipeError("train.precision is float16, in which processors do not train: set it to auto or bfloat16")
    if train.threads:
        torch.set_num_threads(train.threads)
    precision: Any = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}[
        fastest_precision(device) if train.precision == "auto" else train.precision
    ]
    world, local = int(os.environ.get("WORLD_SIZE", 1)), processes_here()
    parts = world * train.accumulate
    if train.batch % parts:
        raise RecipeError(
            f"train.batch {train.batch} does not divide into {world} processes of {train.accumulate} parts each"
        )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision
    accelerator: Any = device
    fabric = Fabric(
        accelerator=accelerator, devices=local, num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto", precision=precision,
    )  # fmt: skip
    fabric.launch()
    return fabric


def processes_here() -> int:
    """How many processes of the run torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextmanager
def together(fabric: Fabric) -> Iterator[None]:
    """What fails in one process fails in all, so that none waits for one that has gone. No process may leave it out."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if fabric.world_size == 1:
            raise
        failure = error
    if any(most(fabric, failure is not None)):
        messages = gathered(fabric, None if failure is None else str(failure))
        rank, message = next((rank, message) for rank, message in enumerate(messages) if message is not None)
        raise failure or TrainingError(f"process {rank}: {message}")


def most(fabric: Fabric, *numbers: int) -> list[int]:
    """Each number at its largest over all processes."""
    if fabric.world_size == 1:
        return list(numbers)
    largest: Any = fabric.all_reduce(torch.tensor(numbers, dtype=torch.int64, device=fabric.device), reduce_op="max")
    found: list[int] = largest.tolist()
    return found


def gathered(fabric: Fabric, value: Any) -> list[Any]:
    """The value that each process has, by rank."""
    found = [value] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(found, value)
    return found


def fastest_precision(device: str) -> str:
    """What the device multiplies fastest."""
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bfloat16"
    return "float32"
