"""The `jukebox-hf` command."""

import sys

import typer
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.markup import escape

from .codes import decode, encode, reconstruct
from .compose import compose
from .convert import convert
from .embed import embed
from .songs import continue_song, generate, upsample

app = typer.Typer(
    help="OpenAI's Jukebox: convert its checkpoints, turn music into codes and back, embed it, draw songs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (convert, compose, encode, decode, reconstruct, embed, generate, continue_song, upsample):
    # "continue" alone is a word of Python's.
    app.command(command.__name__.removesuffix("_song"))(command)


def main():
    """Runs the command; an error that a user can mend is one line and the exit status 1, not a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/bold red] {escape(message)}", highlight=False)
        sys.exit(1)
