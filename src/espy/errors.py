"""What can go wrong, as a few kinds. Each message is one line: what was found, where, what to do."""

LONGEST = 600  # characters of a message; names come from files, and files from anywhere


def one_line(message: str) -> str:
    """A message as one line of printable characters, whatever it quotes.

    >>> one_line("masks/a\\nb.png: empty")
    'masks/a b.png: empty'
    """
    line = "".join(c if c.isprintable() else " " for c in message)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


class EspyError(Exception):
    """The call or its input cannot work. The message is made one line of printable characters, whatever it quotes."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class SpecError(EspyError, ValueError):
    """A choice that no network can be built from."""


class PictureError(EspyError):
    """A picture that cannot be read."""


class DataError(EspyError):
    """A set of pictures with truth, or a pair of it, that cannot be used."""


class ModelError(EspyError):
    """A model file or checkpoint that is not accepted."""


class EngineError(EspyError):
    """An engine that is not installed, unknown, or cannot do what was asked of it."""


class TrainingError(EspyError):
    """A training run that cannot go on."""


class OutputError(EspyError):
    """An output that would overwrite something or cannot be written."""
