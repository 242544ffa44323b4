"""`jukebox-hf convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ..conversion.convert import convert_checkpoint
from ..conversion.official import OFFICIAL_CHECKPOINTS


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help=f"An official checkpoint ({', '.join(OFFICIAL_CHECKPOINTS)}), or the path of a .pth.tar file: an "
            "official one fetched elsewhere, or one of your own training with the original."
        ),
    ],
    output_dir: Annotated[Path, typer.Argument(help="The folder to write; it must not exist or be empty.")],
    push_to_hub: Annotated[
        str | None, typer.Option(help="Also upload the folder to this repository on the Hub.", metavar="ORG/NAME")
    ] = None,
):
    """Convert a checkpoint of the original Jukebox to a folder that from_pretrained loads.

    Official checkpoints are downloaded once, to the cache of Hugging Face; an interrupted download goes on where it
    stopped. Nothing in a checkpoint is executed, and a file that asks for it is refused.

    \b
    Examples:
      jukebox-hf convert 5b-vqvae jukebox-5b-vqvae
      jukebox-hf convert ~/Downloads/vqvae.pth.tar jukebox-5b-vqvae
      jukebox-hf convert logs/small_vqvae/checkpoint_latest.pth.tar my-vqvae --push-to-hub me/my-vqvae

    Then, in Python: AutoModel.from_pretrained("jukebox-5b-vqvae").
    """
    folder = convert_checkpoint(source, output_dir, push_to_hub)
    typer.echo(f"Converted {source} to {folder}")
    if push_to_hub is not None:
        typer.echo(f"Uploaded it to https://huggingface.co/{push_to_hub}")
