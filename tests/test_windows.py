"""The arithmetic of windows: exhaustively on small numbers, and against the original's rule for their starts."""

import pytest

from jukebox_hf.windows import Window, plan_windows

# total, context, hop, prompt
SMALL = [
    (total, context, hop, prompt)
    for total in range(1, 14)
    for context in range(1, 7)
    for hop in range(1, context + 1)
    for prompt in range(total + 1)
]


def original_starts(total: int, context: int, hop: int) -> list[int]:
    """Steps of a hop; the first window that would reach the end is pulled back to it and is the last."""
    starts, start = [], 0
    while start + context < total:
        starts.append(start)
        start += hop
    return [*starts, max(0, total - context)]


def test_every_code_is_drawn_once_and_in_order():
    for total, context, hop, prompt in SMALL:
        drawn = prompt
        for window in plan_windows(total, context, hop, prompt):
            assert window.start + window.num_given == drawn
            assert 0 <= window.start < window.stop <= total
            assert window.num_given >= 0
            drawn = window.stop
        assert drawn == total, (total, context, hop, prompt)


def test_starts_are_the_originals_where_something_is_drawn():
    for total, context, hop, prompt in SMALL:
        starts = original_starts(total, context, hop)
        expected = [start for start in starts if start + context > prompt] if prompt < total else []
        # The end of the song is reached by the last window, and no window after the first of that end has work.
        assert [window.start for window in plan_windows(total, context, hop, prompt)] == expected


def test_windows_are_whole_contexts_unless_the_song_is_shorter():
    for total, context, hop, prompt in SMALL:
        for window in plan_windows(total, context, hop, prompt):
            assert window.stop - window.start == min(total, context)


def test_the_number_of_windows_is_the_originals():
    for total, context, hop, _ in SMALL:
        expected = -(-(total - context) // hop) + 1 if total > context else 1
        assert len(plan_windows(total, context, hop)) == expected


def test_a_released_top_prior():
    windows = plan_windows(total=20000, context=8192, hop=1024)
    assert windows[:2] == [Window(0, 8192, 0), Window(1024, 9216, 7168)]
    # The last of thirteen is pulled back from 12288.
    assert windows[-1] == Window(11808, 20000, 19456 - 11808)
    assert len(windows) == 13


def test_a_prompt_at_any_length():
    assert plan_windows(10, 4, 2, prompt=4) == [Window(2, 6, 2), Window(4, 8, 2), Window(6, 10, 2)]
    assert plan_windows(10, 4, 2, prompt=9) == [Window(6, 10, 3)]
    assert plan_windows(10, 4, 2, prompt=10) == []
    assert plan_windows(3, 4, 2, prompt=1) == [Window(0, 3, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 2, 0), "total=0, context=4"),
        ((4, 0, 2, 0), "total=4, context=0"),
        ((4, 4, 0, 0), "hop=0"),
        ((4, 4, 5, 0), "hop=5.*1 to 4"),
        ((4, 4, 2, 5), "prompt=5.*0 to 4"),
        ((4, 4, 2, -1), "prompt=-1"),
    ],
)
def test_what_is_no_plan_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_windows(*arguments)
