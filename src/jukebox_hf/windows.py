"""Which windows of a song a prior draws one after the other: pure arithmetic (arXiv 2005.00341, section 4.4)."""

from typing import NamedTuple


class Window(NamedTuple):
    """Codes `start` to `stop` of a level; the first `num_given` of them are there already, the others are drawn."""

    start: int
    stop: int
    num_given: int


def plan_windows(total: int, context: int, hop: int, prompt: int = 0) -> list[Window]:
    """Plans the windows in which the codes of a level are drawn.

    Windows start every `hop` codes; the last one is pulled back to end with the song. Each reads again what it shares
    with those before, and a window with nothing to draw is left out. A song shorter than the context is one window.

    Args:
        total: codes of the song.
        context: codes of a whole window.
        hop: codes from one window's start to the next one's.
        prompt: codes that the song starts with and that are not drawn.

    Raises:
        ValueError: a song or context without codes, a hop that leaves gaps, or a prompt longer than the song.
    """
    if total < 1 or context < 1:
        raise ValueError(f"total={total}, context={context}: give positive numbers of codes.")
    if not 1 <= hop <= context:
        raise ValueError(f"hop={hop}: windows of {context} codes follow each other after 1 to {context}.")
    if not 0 <= prompt <= total:
        raise ValueError(f"prompt={prompt}: a song of {total} codes starts with 0 to {total}.")
    last_start = max(0, total - context)
    windows, done = [], prompt
    for start in (*range(0, last_start, hop), last_start):
        stop = min(total, start + context)
        if done < stop:
            windows.append(Window(start, stop, done - start))
            done = stop
    return windows


__all__ = ["Window", "plan_windows"]
