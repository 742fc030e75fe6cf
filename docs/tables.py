"""Print the table of networks that README.md shows, counted on the networks; `--check` compares README.md with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import espy
from espy.nn.count import macs, parameters
from espy.published import REPORTED

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- networks -->", "<!-- /networks -->"
SIZE = (512, 1024)  # (height, width)
CLASSES = 20

# name, choices beside `classes`, mean IoU as the authors report it
Row = tuple[str, dict[str, Any], str]


def rows() -> list[Row]:
    """The networks of the table."""
    table: list[Row] = [
        (f"ESPNet-{variant}", {"network": "espnet", "variant": variant, "alpha2": 2, "alpha3": 8}, "–")
        for variant in "ABC"
    ]
    # 60.3: the authors' README (60.336) and paper; one figure, of the network with alpha3 = 8
    table.append(("ESPNet", {"network": "espnet", "alpha2": 2, "alpha3": 8}, "60.3 % (Cityscapes test)"))
    city, voc = (REPORTED["espnetv2", classes][1] for classes in (20, 21))
    for width in (0.5, 1.0, 1.25, 1.5, 2.0):
        figures = f"{city[width]} % (Cityscapes val), {voc[width]} % (Pascal VOC val)" if width in city else "–"
        table.append((f"ESPNetv2, s = {width}", {"network": "espnetv2", "width": width}, figures))
    for width in (0.5, 1.0, 1.5, 2.0):
        table.append((f"ESPNetv2 as first published, s = {width}", {"network": "espnetv2_first", "width": width}, "–"))
    return table


def networks() -> str:
    """The table, Markdown."""
    lines = ["| network | `espy.build(...)` | parameters | MACs (million) | mean IoU, authors' figures |"]
    lines.append("|---|---|--:|--:|---|")
    for name, choices, figures in rows():
        arguments = ", ".join(
            f'"{value}"' if key == "network" else f"{key}={value!r}".replace("'", '"') for key, value in choices.items()
        )
        with torch.device("meta"):
            network = espy.build(choices, classes=CLASSES)
        count, work = parameters(network), macs(network, SIZE) / 1e6
        lines.append(f"| {name} | `{arguments}` | {count:,} | {work:,.2f} | {figures} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the table, or say whether README.md holds it."""
    table = networks()
    if "--check" not in arguments:
        print(table)
        return 0
    found = README.read_text(encoding="utf-8").partition(START)[2].partition(END)[0].strip()
    if found != table:
        print(f"README.md: the table of networks differs from what is counted; between its markers belongs:\n{table}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
