"""Windows that are prepared on a second thread, in parts, while the caller's thread keeps a device busy."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

WindowT = TypeVar("WindowT")


@dataclass(frozen=True)
class Part:
    """Part `number` of the `count` that a window has; or, in the place of what it spoilt, an `error`."""

    content: Any
    number: int = 0
    count: int = 1
    error: BaseException | None = None

    @property
    def is_last(self) -> bool:
        """Whether its window ends with it."""
        return self.number == self.count - 1

    @property
    def is_last_but_one(self) -> bool:
        """Whether one part of its window is left after it; also of a window that has no other."""
        return self.number == max(0, self.count - 2)


class Ahead(Generic[WindowT]):
    """The parts of some windows, in order.

    `parts_of` gives a window's parts, at least one, and runs on a thread that ends with `close`. What reading a window
    or preparing a part raises is a part with an error; the caller takes none after it.
    """

    def __init__(self, windows: Iterator[WindowT], parts_of: Callable[[WindowT], Iterator[Part]]) -> None:
        self._windows = windows
        self._parts_of = parts_of
        self._read: deque[SimpleQueue[Part]] = deque()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rerank-udf-prepare")

    def read(self) -> None:
        """Read the next window, on the caller's thread, and have it prepared; nothing at the end."""
        parts: SimpleQueue[Part] = SimpleQueue()
        try:
            window = next(self._windows)
        except StopIteration:
            return
        except Exception as error:  # raised where its result would be: those before it are not lost
            parts.put(Part(None, error=error))
        else:
            self._pool.submit(self._prepare, window, parts)
        self._read.append(parts)

    def parts(self) -> Iterator[Part]:
        """Each part of what has been read by then, once it is prepared."""
        while self._read:
            ready = self._read.popleft()
            part = ready.get()
            yield part
            while not part.is_last:
                part = ready.get()
                yield part

    def close(self) -> None:
        """End the thread: a part in hand is prepared to its end, and no other is begun."""
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, window: WindowT, parts: SimpleQueue[Part]) -> None:
        """Never waits for the caller, who may be gone: there is room for all parts of what has been read."""
        try:
            for part in self._parts_of(window):
                parts.put(part)
                if self._closed.is_set():
                    return
        except BaseException as error:  # whatever it is, the caller waits for a part
            parts.put(Part(None, error=error))
