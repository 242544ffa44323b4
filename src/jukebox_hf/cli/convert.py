"""`jukebox-hf convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ..conversion.convert import DTYPES, convert_checkpoint
from ..conversion.official import OFFICIAL_CHECKPOINTS, OFFICIAL_MODELS


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help=f"An official model ({', '.join(OFFICIAL_MODELS)}) or one of its checkpoints "
            f"({', '.join(OFFICIAL_CHECKPOINTS)}), the path of a .pth.tar file (an official one fetched elsewhere, or "
            "one of your own training with the original), or a repository of transformers 4, a folder or a name on the "
            "Hub."
        ),
    ],
    output_dir: Annotated[Path, typer.Argument(help="The folder to write; it must not exist or be empty.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help=f"Write the matrices of priors' layers in this type ({', '.join(DTYPES)}), and not as they are."
        ),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the lists v2_artist_ids.txt and v2_genre_ids.txt, or those of v3, that a prior of your "
            "own was trained with. An official prior's are downloaded without it."
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Also upload the folder to this repository on the Hub.", metavar="ORG/NAME")
    ] = None,
):
    """Convert the original Jukebox, or what transformers 4 stored of it, to a folder that from_pretrained loads.

    Official checkpoints are downloaded once, to the cache of Hugging Face; an interrupted download goes on where it
    stopped. Converting takes little memory, whatever the size. Nothing in a checkpoint is executed, and a file that
    asks for it is refused.

    \b
    Examples:
      jukebox-hf convert 5b-lyrics jukebox-5b-lyrics
      jukebox-hf convert openai/jukebox-1b-lyrics jukebox-1b-lyrics --dtype float16
      jukebox-hf convert 5b-vqvae jukebox-5b-vqvae
      jukebox-hf convert 1b-lyrics-prior-level-2 jukebox-1b-lyrics-prior-level-2 --dtype float16
      jukebox-hf convert ~/Downloads/vqvae.pth.tar jukebox-5b-vqvae
      jukebox-hf convert logs/my_prior/checkpoint_latest.pth.tar my-prior --vocabulary jukebox/data/ids
      jukebox-hf convert logs/small_vqvae/checkpoint_latest.pth.tar my-vqvae --push-to-hub me/my-vqvae

    Then, in Python: AutoModel.from_pretrained("jukebox-5b-lyrics").
    """
    folder = convert_checkpoint(source, output_dir, push_to_hub, dtype, vocabulary)
    typer.echo(f"Converted {source} to {folder}")
    if push_to_hub is not None:
        typer.echo(f"Uploaded it to https://huggingface.co/{push_to_hub}")
