"""What `jukebox-hf embed` shows while clips are embedded."""

import time
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from .song_progress import LINE_INTERVAL


class EmbedProgress:
    """Shows clips, speed, time left and failures: as a bar on a terminal, elsewhere as a line now and then.

    Args:
        console: to write to.
        num_clips, seconds: that this process has to do, and how long they are, about.
    """

    def __init__(self, console: Console, num_clips: int, seconds: float):
        self.console, self.num_clips, self.seconds = console, num_clips, seconds
        self.done, self.heard, self.failed, self.audio = 0, 0.0, 0, 0.0
        self.bar = None
        if console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}")
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task("", total=num_clips, facts="")
        self.start = self.last_line = time.monotonic()

    def __enter__(self) -> "EmbedProgress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()

    @property
    def elapsed(self) -> float:
        return max(time.monotonic() - self.start, 1e-3)

    def fail(self, name: str, reason: str):
        """Reports a clip that failed."""
        self.failed += 1
        message = escape(reason if name in reason else f"{name}: {reason}")
        (self.bar.console if self.bar else self.console).print(f"[bold red]Error:[/bold red] {message}")

    def advance(self, clips: int, planned: float, audio: float):
        """Counts clips that are done, of so many planned and real seconds."""
        self.done, self.heard, self.audio = self.done + clips, self.heard + planned, self.audio + audio
        text = f"{self.done} of {self.num_clips} clips, {self.speed()}"
        if self.heard:
            left = self.elapsed * max(0.0, self.seconds - self.heard) / self.heard
            text += f", {timedelta(seconds=round(left))} left"
        if self.failed:
            text += f", {self.failed} failed"
        if self.bar:
            self.bar.update(self.task, completed=self.done, facts=text)
        elif time.monotonic() - self.last_line >= LINE_INTERVAL:
            self.last_line = time.monotonic()
            self.console.print(escape(text))

    def speed(self) -> str:
        """Tells how fast it goes."""
        return f"{self.done / self.elapsed:.2f} clips/s, {self.audio / self.elapsed:.1f}x real time"
