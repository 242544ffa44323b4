"""`jukebox-hf compose`."""

from pathlib import Path
from typing import Annotated

import typer

from ..conversion.whole import compose_repository


def compose(
    parts: Annotated[
        list[Path],
        typer.Argument(
            help="The folders of one VQ-VAE and of the priors of its levels, converted or trained, in any order."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write; it must not exist or be empty.")],
):
    """Put a VQ-VAE and its priors together to one folder that from_pretrained loads as one model.

    The weights are copied as they are, in little memory, whatever the size. With the processors of all priors the whole
    has one, too. A level without a prior cannot be drawn.

    \b
    Example:
      jukebox-hf compose vqvae/ prior-0/ prior-1/ prior-2/ --output whole/

    Then, in Python: AutoModel.from_pretrained("whole").
    """
    typer.echo(f"Put {len(parts)} parts together in {compose_repository(parts, output)}")
