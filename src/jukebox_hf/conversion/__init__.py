"""From the original's checkpoints to repositories that `from_pretrained` loads; the core never imports this."""

from .convert import convert_checkpoint
from .whole import compose_repository

__all__ = ["compose_repository", "convert_checkpoint"]
