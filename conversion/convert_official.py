"""Converts every official checkpoint, and uploads the results when an organisation is given."""

from pathlib import Path
from typing import Annotated

import typer

from jukebox_hf.conversion.convert import convert_checkpoint
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS


def main(
    output_root: Annotated[Path, typer.Argument(help="Each repository becomes a folder in here.")],
    organisation: Annotated[str | None, typer.Option(help="Upload to this organisation on the Hub.")] = None,
):
    """Convert every official checkpoint to OUTPUT_ROOT/jukebox-NAME."""
    for name in OFFICIAL_CHECKPOINTS:
        repository = f"jukebox-{name}"
        push_to_hub = f"{organisation}/{repository}" if organisation else None
        print(convert_checkpoint(name, output_root / repository, push_to_hub))


if __name__ == "__main__":
    typer.run(main)
