"""Reads clips in threads while a model works on those before them."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

THREADS = 4
# An hour of audio that waits at 44.1 kHz is 635 MB.
SECONDS_AHEAD = 3600.0


class ReadAhead:
    """Gives clips in order, each a pair of its number and its samples, or the ValueError that reading it raised.

    libsndfile and soxr let other threads run, so the clips after the one that is asked for are read meanwhile: up to
    `count` of them and about an hour of audio.

    Args:
        numbers: of the clips, in order.
        read: gives a clip's samples or raises a ValueError.
        seconds: each clip's length, about.
        count: how many clips to read ahead.
    """

    def __init__(self, numbers: Sequence[int], read: Callable[[int], np.ndarray], seconds: Sequence[float], count: int):
        self.numbers, self.read, self.seconds, self.count = numbers, read, seconds, count
        # Seconds in which whoever asked for clips had to wait for them.
        self.waited = 0.0

    def __iter__(self) -> Iterator[tuple[int, np.ndarray | ValueError]]:
        pool = ThreadPoolExecutor(THREADS, "read-ahead")
        ahead: deque[tuple[int, Future]] = deque()
        held, position = 0.0, 0
        try:
            while position < len(self.numbers) or ahead:
                while position < len(self.numbers) and len(ahead) < self.count:
                    number = self.numbers[position]
                    # One clip is read however long it is.
                    if ahead and held + self.seconds[number] > SECONDS_AHEAD:
                        break
                    ahead.append((number, pool.submit(self.read, number)))
                    held, position = held + self.seconds[number], position + 1
                number, clip = ahead.popleft()
                held -= self.seconds[number]
                start = time.monotonic()
                try:
                    samples: np.ndarray | ValueError = clip.result()
                except ValueError as error:
                    samples = error
                finally:
                    self.waited += time.monotonic() - start
                # Else the generator would hold it while the next one is worked on.
                del clip
                yield number, samples
                del samples
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
