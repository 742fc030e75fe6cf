"""What a network is, as data: frozen, validated, JSON in and out; no torch.

A spec holds every choice. `make` turns a name and choices into one, `from_dict` reads the JSON form, `to_dict` writes it.
The arithmetic that decides whether choices fit (how widths split, which dilations a unit has) stands here too, so that a
spec is refused before anything is built and `espy.nn` builds by the same numbers.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

import msgspec

from espy.errors import SpecError

Activation = Literal["prelu", "relu", "silu"]

WIDTHS = (0.5, 1.0, 1.25, 1.5, 2.0)  # ESPNetv2's s; any other breaks the divisibility that EESP needs
DOWN_LIMITS = (13, 11, 9, 7)  # largest kernel extent of the down-samplers of levels 2..5
REPEAT_LIMITS = (0, 9, 7, 5)  # of the units repeated after them; level 2 has none
REPEATS = (0, 3, 7, 3)

V1_EPS = 1e-3  # ESPNet's norms; their inputs are tiny, so are their variances (published weights are useless with 1e-5)
V2_EPS = 1e-5  # ESPNetv2's

SCALES = ((2, 1), (3, 2), (1, 1), (1, 2), (1, 10))
"""Of ESPNetv2's pyramids: 2.0, 1.5, 1.0, 0.5, 0.1 as fractions, so that sizes stay whole numbers."""
DETECTOR_SCALES = ((2, 1), (1, 1), (1, 2), (1, 4))  # of its pyramids; G₆ is seen at the first two alone, G₅ at three
DETECTOR_WIDTHS = (512, 256, 128)  # c₆, c₇, c₈: of its maps at 1/64, 1/128 and of one cell


class Reading(NamedTuple):
    """What the authors' code and the article's text of ESPNetv2 hold different.

    A `bare` convolution has neither norm nor activation.
    """

    bare: bool
    fuse_act: bool
    reinforce_act: str


READINGS = {
    "authors": Reading(bare=False, fuse_act=True, reinforce_act="prelu"),
    "seed": Reading(bare=False, fuse_act=False, reinforce_act="relu"),
    "seed_literal": Reading(bare=True, fuse_act=False, reinforce_act="relu"),
}

# Upper bounds keep a damaged or hostile file from asking for a network that fills the memory.
LARGEST = {"classes": 4096, "alpha2": 64, "alpha3": 64, "branches": 64, "kernel": 31, "base": 512, "projection": 4096}
LARGEST_WIDTH = 4096
MOST_ESP_BRANCHES = 16  # the last dilation is then 32768; beyond it padding overflows


def require(condition: bool, message: str) -> None:
    """Raise SpecError(message) unless the condition holds."""
    if not condition:
        raise SpecError(message)


def check_kernel(kernel: int) -> None:
    """Kernels are odd, so that padding keeps the size."""
    require(kernel >= 1 and kernel % 2 == 1, f"kernel must be odd and at least 1, not {kernel}")


def esp_split(channels: int, branches: int) -> tuple[int, int]:
    """Widths (n, n₁) of an ESP module's branches: n each, the first takes what is left (docs/networks.md 2.1).

    >>> esp_split(64, 5)
    (12, 16)
    """
    require(1 <= branches <= MOST_ESP_BRANCHES, f"branches must be 1 to {MOST_ESP_BRANCHES} in ESP, not {branches}")
    n = channels // branches
    require(
        n >= 1, f"an ESP module of {channels} channels cannot be split into {branches} branches: use fewer branches"
    )
    return n, channels - (branches - 1) * n


def eesp_dilations(branches: int, limit: int, kernel: int = 3) -> tuple[int, ...]:
    """Dilations of an EESP's branches, ascending: 1..K, those whose extent (kernel−1)·d+1 exceeds the limit become 1.

    >>> eesp_dilations(4, 7)
    (1, 1, 2, 3)
    """
    require(branches >= 1, f"branches must be at least 1, not {branches}")
    require(
        limit >= 3 and limit % 2 == 1 and (branches <= 8 or limit <= 17),
        f"the largest extent of an EESP must be odd, at least 3 and, beyond 8 branches, at most 17, not {limit}",
    )
    check_kernel(kernel)
    return tuple(sorted(d if (kernel - 1) * d + 1 <= limit else 1 for d in range(1, branches + 1)))


def eesp_split(inputs: int, outputs: int, branches: int) -> int:
    """Width n of an EESP's branches; inputs, outputs and outputs/K must divide by K (grouped convolutions).

    >>> eesp_split(32, 64, 4)
    16
    """
    require(branches >= 1, f"branches must be at least 1, not {branches}")
    require(
        inputs > 0 and outputs > 0 and outputs % branches == 0 and inputs % branches == 0
        and (outputs // branches) % branches == 0,
        f"an EESP from {inputs} to {outputs} channels does not divide into {branches} branches: "
        f"inputs, outputs and outputs/branches must be multiples of branches",
    )  # fmt: skip
    return outputs // branches


def encoder_widths(width: float) -> tuple[int, int, int, int, int, int]:
    """Channels c₁..c₆ of ESPNetv2's levels (docs/networks.md 3.4).

    >>> encoder_widths(1.25)
    (32, 80, 160, 320, 640, 1024)
    """
    require(width in WIDTHS, f"width must be one of {', '.join(map(str, WIDTHS))}, not {width}")
    b = 4 * -(-int(32 * width) // 4)
    return min(32, b), 2 * b, 4 * b, 8 * b, 16 * b, 1024 if width <= 1.5 else 1280


class _Spec(msgspec.Struct, frozen=True, tag_field="network", forbid_unknown_fields=True):
    """What all networks share."""

    @property
    def least_classes(self) -> int:
        """Among fewer classes there is nothing to tell apart."""
        return 2

    def _check(self, *fields: str) -> None:
        for field in fields:
            value = getattr(self, field)
            least = self.least_classes if field == "classes" else 1
            if value is not None:
                require(least <= value <= LARGEST[field], f"{field} must be {least} to {LARGEST[field]}, not {value}")


class ESPNet(_Spec, frozen=True, tag="espnet"):
    """ESPNet-A, -B, -C and the full network with its decoder (docs/networks.md 2).

    `variant`: A shares nothing between levels, B concatenates each level's first and last output, C feeds the pooled
    picture in as well, full adds the decoder. `reinforce` (the pooled picture): as the variant has it unless told otherwise.
    `skip1`: what the decoder's last step reads, the first convolution (`stem`) or its joined form (`cat1`).
    `projection`: channels of the decoder's 1×1 projection at 1/4, the number of classes unless told otherwise.
    `align_corners`: how the output of A, B and C is resized to the picture.
    """

    classes: int = 20
    variant: Literal["A", "B", "C", "full"] = "full"
    alpha2: int = 2
    alpha3: int = 8
    arrangement: Literal["merge", "branch"] = "merge"
    branches: int = 5
    kernel: int = 3
    hff: bool = True
    residual: bool = True
    reinforce: bool | None = None
    activation: Activation = "prelu"
    widths: tuple[int, int, int] = (16, 64, 128)
    skip1: Literal["stem", "cat1"] = "stem"
    projection: int | None = None
    align_corners: bool = True
    task: Literal["segment"] = "segment"

    def __post_init__(self) -> None:
        self._check("classes", "alpha2", "alpha3", "branches", "kernel", "projection")
        check_kernel(self.kernel)
        for width in self.widths:
            require(1 <= width <= LARGEST_WIDTH, f"widths must be 1 to {LARGEST_WIDTH}, not {width}")
        esp_split(self.widths[1], self.branches)
        esp_split(self.widths[2], self.branches)
        require(
            not (self.reinforce and self.variant in "AB"),
            f"variant {self.variant} does not take the picture in again: use variant C, or leave reinforce out",
        )

    @property
    def shares(self) -> bool:
        """Whether a level's first and last output are concatenated."""
        return self.variant != "A"

    @property
    def reinforced(self) -> bool:
        """Whether the pooled picture is concatenated at levels 1 and 2."""
        return self.variant in ("C", "full") if self.reinforce is None else self.reinforce

    @property
    def output_stride(self) -> int:
        """The logits are the picture's size divided by this, rounded up."""
        return 1 if self.variant == "full" else 8

    @property
    def receptive_field_px(self) -> int:
        """Side of the square of pixels that one logit can depend on.

        A chain of extents: each operation of extent e at stride s adds (e−1)·s. An ESP module's is its largest dilation's.
        The chain gives 915, 1,555 and 2,835 for the full network with α 1/1, 2/3 and 2/8, the decoder's cells 4 more.
        """
        reach = 2 ** (self.branches - 1) * (self.kernel - 1)
        entry = 2 if self.arrangement == "merge" else 0  # merge downsamples by 3×3, branch by 1×1
        field = 1 + 2  # the stem, 3×3 at stride 1
        for stride, repeats in ((2, self.alpha2), (4, self.alpha3)):
            field += entry * stride + reach * 2 * stride * (1 + repeats)
        if self.variant == "full":
            last = min(self.branches, self.classes)
            field += 2 ** (last - 1) * (self.kernel - 1) * 4 + 2 * 2  # the decoder's ESP at 1/4, its 3×3 at 1/2
            field += 4  # transposed convolutions: where a pixel lies in its 1/8 cell moves its field
        return field


class _Pyramids(_Spec, frozen=True):
    """The choices that all ESPNetv2 networks share: those of the encoder (docs/networks.md 3.1 to 3.4)."""

    classes: int = 20
    width: float = 2.0
    arrangement: Literal["authors", "seed", "seed_literal"] = "authors"
    branches: int = 4
    kernel: int = 3
    hff: bool = True
    residual: bool = True
    reinforce: bool = True
    activation: Activation = "prelu"

    def _check_encoder(self, levels: int) -> None:
        self._check("classes", "branches", "kernel")
        channels = encoder_widths(self.width)
        for level in range(1, levels):
            i, o = channels[level - 1], channels[level]
            eesp_split(i, o - i, self.branches)
            eesp_dilations(self.branches, DOWN_LIMITS[level - 1], self.kernel)
            if REPEATS[level - 1]:
                eesp_split(o, o, self.branches)

    @property
    def output_stride(self) -> int:
        """The logits have the picture's own size."""
        return 1

    @property
    def receptive_field_px(self) -> None:
        """ESPNetv2 pools over the whole picture: every logit depends on every pixel."""
        return


class ESPNetv2(_Pyramids, frozen=True, tag="espnetv2"):
    """ESPNetv2 for segmentation with pyramid pooling, the published one (docs/networks.md 3.5).

    `base` B gives the decoder's widths 4B, 3B, 2B; `projection` P is the width its pyramids work at, min(classes // 2, B)
    unless told otherwise.
    """

    base: int = 16
    projection: int | None = None
    task: Literal["segment"] = "segment"

    def __post_init__(self) -> None:
        self._check("base", "projection")
        self._check_encoder(4)

    @property
    def pyramid_width(self) -> int:
        """P, the width that the decoder's pyramids work at."""
        return self.projection or min(self.classes // 2, self.base)


class ESPNetv2First(_Pyramids, frozen=True, tag="espnetv2_first"):
    """ESPNetv2 for segmentation as first published (docs/networks.md 3.6)."""

    task: Literal["segment"] = "segment"

    def __post_init__(self) -> None:
        self._check_encoder(4)
        c3 = encoder_widths(self.width)[2]
        eesp_split(2 * c3, c3, self.branches)


class ESPNetv2Classifier(_Pyramids, frozen=True, tag="espnetv2"):
    """ESPNetv2 for classification (docs/networks.md 3.7)."""

    task: Literal["classify"] = "classify"

    def __post_init__(self) -> None:
        self._check_encoder(5)


class ESPNetv2Detector(_Pyramids, frozen=True, tag="espnetv2"):
    """ESPNetv2 with SSD heads (docs/networks.md 4). `classes` counts kinds of things; the background comes with the network."""

    task: Literal["detect"] = "detect"

    def __post_init__(self) -> None:
        self._check_encoder(5)

    @property
    def least_classes(self) -> int:
        """One kind of thing is enough: there is the background too."""
        return 1


Spec: TypeAlias = ESPNet | ESPNetv2 | ESPNetv2First | ESPNetv2Classifier | ESPNetv2Detector
NETWORKS: dict[str, dict[str, type[Spec]]] = {
    "espnet": {"segment": ESPNet},
    "espnetv2": {"segment": ESPNetv2, "classify": ESPNetv2Classifier, "detect": ESPNetv2Detector},
    "espnetv2_first": {"segment": ESPNetv2First},
}
"""Network, task → choices. Every network segments, and does so unless told otherwise."""


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def from_dict(data: Any) -> Spec:
    """The spec of a JSON object `{"network": name, choice: value, ...}`. Raises SpecError, one line, for anything else."""
    if not isinstance(data, dict) or not isinstance(name := data.get("network"), str):
        raise SpecError('a spec is an object with a "network" and its choices')
    if name not in NETWORKS:
        raise SpecError(f"unknown network {name!r}: {nearest(name, list(NETWORKS))}")
    tasks = NETWORKS[name]
    task = data.get("task", "segment")
    if not isinstance(task, str) or task not in tasks:
        raise SpecError(f"{name}: task {task!r} is unknown: {nearest(str(task), list(tasks))}")
    kind = tasks[task]
    for key in data:
        if key != "network" and key not in kind.__struct_fields__:
            raise SpecError(f"{name} has no choice {key!r}: {nearest(str(key), kind.__struct_fields__)}")
    for field in msgspec.structs.fields(kind):
        known, value = get_args(field.type), data.get(field.name)
        if get_origin(field.type) is Literal and isinstance(value, str) and value not in known:
            raise SpecError(f"{name}: {field.name} {value!r} is unknown: {nearest(value, known)}")
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise SpecError(f"{name}: {_plain(str(error))}") from None


def _plain(message: str) -> str:
    """msgspec's 'Expected `int`, got `str` - at `$.classes`' as 'classes: expected int, got str'."""
    text, _, where = message.partition(" - at `$")
    where = where.strip("`.")
    text = text.replace("`", "")
    return f"{where}: {text[0].lower()}{text[1:]}" if where else text


def make(network: str, **choices: Any) -> Spec:
    """A validated spec from a network's name and its choices.

    >>> make("espnetv2", classes=11, width=0.5).pyramid_width
    5
    """
    return from_dict({"network": network, **choices})


def to_dict(spec: Spec) -> dict[str, Any]:
    """The JSON form, every choice written out; `from_dict` reads it back."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(spec))  # with lists, as it reads back
    return data
