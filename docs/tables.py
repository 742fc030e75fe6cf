"""Print the tables that the documents show: networks, counted, and a recipe's fields; `--check` compares the documents."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch

import espy
from espy.learn.recipe import SECTIONS
from espy.nn.count import macs, parameters
from espy.published import REPORTED

ROOT = Path(__file__).resolve().parents[1]
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


def fields() -> str:
    """The table of a recipe's fields, Markdown."""
    lines = ["| field | values | default | meaning |", "|---|---|---|---|"]
    for section, kind in SECTIONS.items():
        schema = msgspec.json.schema(kind)
        for name, rule in schema["$defs"][kind.__name__]["properties"].items():
            default = f"`{json.dumps(rule['default'])}`" if rule.get("default") is not None else "–"
            lines.append(f"| `{section}.{name}` | {values(rule)} | {default} | {rule['description']} |")
    return "\n".join(lines)


def values(rule: dict[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in rule:
        return " or ".join(values(one) for one in rule["anyOf"] if one != {"type": "null"})
    if "enum" in rule:
        return ", ".join(f"`{value}`" for value in rule["enum"])
    if rule["type"] == "array":
        one = values((rule.get("prefixItems") or [rule["items"]])[0])
        return f"{len(rule['prefixItems'])} {one}s" if "prefixItems" in rule else f"{one}s"
    bounds = [
        f"{words} {rule[key]}"
        for key, words in (
            ("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"),
        )
        if key in rule
    ]  # fmt: skip
    kind = {"string": "text", "boolean": "`true`, `false`", "integer": "whole number", "number": "number"}[rule["type"]]
    return " ".join([kind, *bounds])


TABLES = {"README.md": ("networks", networks), "docs/train.md": ("fields", fields)}
"""Document → its table's name and what makes it; it stands between `<!-- NAME -->` and `<!-- /NAME -->`."""


def main(arguments: list[str]) -> int:
    """Print the tables, or say whether the documents hold them."""
    wrong = 0
    for document, (name, make) in TABLES.items():
        table = make()
        if "--check" not in arguments:
            print(table)
            continue
        text = (ROOT / document).read_text(encoding="utf-8")
        if text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0].strip() != table:
            print(f"{document}: the table of {name} differs from the code; between its markers belongs:\n{table}")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
