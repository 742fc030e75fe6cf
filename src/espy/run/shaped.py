"""What runs a graph, made for the shape of the pictures that come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from espy.errors import EngineError, ModelError

T = TypeVar("T")
Shape = tuple[int, ...]


class Shaped(Generic[T]):
    """As long as all pictures have one shape, what runs them is made for it: engines then know which maps are equal, need not
    work out sizes, and write sums in place. A second shape replaces it by one for all.

    `make` takes the shape, None for all, and raises ModelError where it does not fit the graph.
    """

    def __init__(self, make: Callable[[Shape | None], T]) -> None:
        self._make = make
        self._made: T | None = None
        self._shape: Shape | None = None  # that it is made for; () for all
        self._open = True
        self._lock = threading.Lock()

    def of(self, shape: Shape) -> T:
        """What runs pictures of a shape. Raises EngineError behind `close`."""
        with self._lock:
            if not self._open:
                raise EngineError("the engine is closed")
            if self._made is None or self._shape not in (shape, ()):
                self._shape = shape if self._made is None and self._shape is None else ()
                self._made = None  # its memory goes before another's comes
                try:
                    self._made = self._make(self._shape or None)
                except ModelError:  # where one for all can be made, it says when it runs what does not fit
                    self._shape = ()
                    self._made = self._make(None)
            return self._made

    def close(self) -> None:
        """Give back what was made; nothing is made any more."""
        with self._lock:
            self._open, self._made = False, None
