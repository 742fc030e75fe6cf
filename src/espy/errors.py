"""What can go wrong, as a few kinds. Each message is one line: what was found, where, what to do."""


class EspyError(Exception):
    """The call or its input cannot work."""


class SpecError(EspyError, ValueError):
    """A choice that no network can be built from."""


class PictureError(EspyError):
    """A picture that cannot be read."""


class ModelError(EspyError):
    """A model file or checkpoint that is not accepted."""


class EngineError(EspyError):
    """An engine that is not installed, unknown, or cannot do what was asked of it."""


class OutputError(EspyError):
    """An output that would overwrite something or cannot be written."""
