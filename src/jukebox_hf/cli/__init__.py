"""The `jukebox-hf` command."""

import sys

import typer
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.markup import escape

from .codes import decode, encode, reconstruct
from .convert import convert

app = typer.Typer(
    help="OpenAI's Jukebox: convert its checkpoints, turn music into its codes and codes into music.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (convert, encode, decode, reconstruct):
    app.command()(command)


def main():
    """Runs the command; an error that a user can mend is one line and the exit status 1, not a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/bold red] {escape(message)}", highlight=False)
        sys.exit(1)
