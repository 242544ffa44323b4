"""What `jukebox-hf generate`, `continue` and `upsample` show while songs are drawn."""

import time
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from ..generation_jukebox import MISSING, JukeboxProgress
from ..song_state import STATE_FILE
from .song_folder import read_codes

# Between two lines where there is no terminal to draw bars on, in seconds.
LINE_INTERVAL = 10.0


class SongProgress:
    """Shows level, window, speed and time left: as bars on a terminal, elsewhere as a line now and then.

    Speed is in codes of all songs together; the time left for all levels takes the levels below to be as fast as this
    one. Call it with what `generate` reports, within a `with` statement.

    Args:
        console: to write to.
        folder: the `state_dir` of `generate`.
        num_songs: that it draws.
    """

    def __init__(self, console: Console, folder: Path, num_songs: int):
        self.console, self.folder, self.num_songs = console, folder, num_songs
        self.bars = None
        if console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}")
            self.bars = Progress(*columns, console=console, transient=True)
            self.level_bar, self.song_bar = (self.bars.add_task(name, facts="") for name in ("", "all levels"))
        # Codes of all songs, by level.
        self.missing: dict[int, int] = {}
        self.level, self.drawn, self.since = -1, 0, 0.0
        self.now = self.last_line = time.monotonic()

    @property
    def has_begun(self) -> bool:
        """Whether anything was drawn, or found to be drawn already."""
        return self.level >= 0

    def __enter__(self) -> "SongProgress":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_):
        if self.bars:
            self.bars.stop()

    def __call__(self, progress: JukeboxProgress):
        if not self.missing:
            codes = read_codes(self.folder / STATE_FILE)
            self.missing = {level: int((values == MISSING).sum()) for level, values in codes.items()}
            if self.bars:
                self.bars.update(self.song_bar, total=sum(self.missing.values()))
        if progress.level != self.level:
            self.level, self.drawn = progress.level, 0
            self._say(f"Level {self.level} grows in {self._audio_files()}")
            if self.bars:
                self.bars.reset(self.level_bar, total=progress.total * self.num_songs)
        before, self.now = self.now, time.monotonic()
        if progress.audio is None:
            # Before a level's first code its window's beginning was read.
            self.since = self.since if self.drawn else before
            codes = progress.songs[1] - progress.songs[0]
            self.drawn += codes
            self.missing[self.level] -= codes
        self._show(progress)

    def _show(self, progress: JukeboxProgress):
        first, last = progress.songs
        where = f"level {progress.level}, window {progress.window + 1} of {progress.num_windows}"
        if last - first < self.num_songs:
            where += f", songs {first} to {last - 1}"
        of_level, of_song = self.missing[self.level], sum(self.missing.values())
        speed, level_left, song_left = "", "", ""
        if self.drawn:
            rate = self.drawn / max(self.now - self.since, 1e-3)
            speed = f"{rate:.0f} codes/s, "
            level_left, song_left = (f"{timedelta(seconds=round(left / rate))} left" for left in (of_level, of_song))
        if self.bars:
            done = progress.total * self.num_songs - of_level
            self.bars.update(self.level_bar, description=where, completed=done, facts=f"{speed}{level_left}")
            self.bars.update(self.song_bar, completed=self.bars.tasks[1].total - of_song, facts=song_left)
            return
        is_last = progress.window + 1 == progress.num_windows and last == self.num_songs
        is_due = is_last or self.now - self.last_line >= LINE_INTERVAL
        if self.drawn and progress.audio is not None and is_due:
            self.last_line = self.now
            self._say(f"{where}: {speed}{level_left}; all levels: {song_left}")

    def _audio_files(self) -> Path:
        return self.folder / f"song-{'0' if self.num_songs == 1 else '*'}-level-{self.level}.wav"

    def _say(self, text: str):
        self.console.print(escape(text), highlight=False)
