"""From the original's checkpoints to repositories that `from_pretrained` loads; the core never imports this."""

from .convert import convert_checkpoint

__all__ = ["convert_checkpoint"]
