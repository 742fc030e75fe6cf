"""`espy demo`: the bundled models on the bundled photos, with the figures to expect."""

from __future__ import annotations

import json
from pathlib import Path

import click

from espy.cli import text

TOLERANCE = 0.005  # of a share; engines differ in rounding, decoders by a grey level


@click.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out"), show_default=True,
    help="Folder for the results; earlier ones are replaced.",
)  # fmt: skip
def command(out: Path) -> int:
    """Segment the bundled photos and print what was found beside the figures to expect.

    Example: espy demo --out out/
    """
    from rich.table import Table

    from espy import bundle
    from espy.run import files
    from espy.run.predictor import load
    from espy.run.result import Segmentation

    expected = json.loads((bundle.FOLDER / "photos" / "expected.json").read_text(encoding="utf-8"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("file", "model", "height x width", "ms", "shares of the picture", "expected"):
        table.add_column(column, justify="right" if column in ("height x width", "ms") else "left")
    alike = True
    for name, photos in expected.items():
        with load(name, remark=text.say) as model:
            tasks = files.find([str(bundle.FOLDER / "photos" / photo) for photo in photos], out)
            for done in files.predict(model, tasks, out, force=True):
                if not isinstance(done.result, Segmentation):
                    raise done.error or AssertionError
                wanted = photos[Path(done.task.source).name]
                shares = done.result.shares
                off = max(abs(shares[label] - share) for label, share in wanted.items())
                alike &= off <= TOLERANCE
                height, width = done.result.size
                table.add_row(
                    Path(done.task.source).name, name, f"{height} x {width}", f"{sum(done.result.timing.values()):.0f}",
                    text.main_shares(shares, 4), f"{text.main_shares(wanted, 4)} ({'as' if off <= TOLERANCE else 'NOT as'} found)",
                )  # fmt: skip
    text.print_table(table, 180)
    print(f"The pictures lie in {out}/ (NAME.overlay.jpg, NAME.mask.png, NAME.json).")
    if not alike:
        text.say("espy: the shares differ from those expected by more than half a percentage point")
    return 0 if alike else 1
