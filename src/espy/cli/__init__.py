"""The command line: one file a verb, each thin. Results go to stdout, progress and remarks to stderr."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import click

from espy.cli import bench, check, convert, demo, eval, export, models, predict, quantize, recipe, train
from espy.errors import EspyError
from espy.version import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="espy", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks; may stand anywhere.")
def app(debug: bool) -> None:
    """ESPNet and ESPNetv2: understand pictures on ordinary processors.

    Example: espy predict photo.jpg --out out/
    """


for verb in (predict, check, recipe, train, eval, bench, convert, export, quantize, models, demo):
    app.add_command(verb.command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 all done, 1 some inputs failed or have faults, 2 the call cannot work, 130 interrupted."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """The exit code of a command line."""
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code: Any = app.main([a for a in arguments if a != "--debug"], prog_name="espy", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        cure = f"; see {context.command_path} --help" if context else ""
        return _fail(f"{error.format_message().rstrip('.')}{cure}")
    except EspyError as error:
        if debug:
            raise
        return _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        print("espy: interrupted; finished files are whole", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}; this is a fault of espy's, --debug shows where")


def _fail(message: str) -> int:
    print(f"espy: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unwinds, so that half-written files go away
