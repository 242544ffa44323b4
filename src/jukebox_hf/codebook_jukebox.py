"""The codebook of one level: nearest codes, and its running update in training (arXiv 2005.00341, section 3)."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from .configuration_jukebox import JukeboxVQVAEConfig

# Latents searched at a time. Always so many, the last ones filled up: matrix products of other shapes may sum in
# another order, and a latent between two codes shall go to the same one in a batch, in a stream and alone.
SEARCH_ROWS = 1024


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Adds a tensor over all processes of a distributed run, in place; alone it stays as it is."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def first_rank(tensor: torch.Tensor) -> torch.Tensor:
    """Takes the first process's tensor in every process of a distributed run, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(tensor, src=0)
    return tensor


class JukeboxCodebook(nn.Module):
    """Replaces latents by their nearest code vectors; in training the vectors follow the latents they stand for.

    All three tensors are buffers: no gradient reaches them, and a checkpoint holds them, so training resumes exactly.
    Counts of zero mean that no batch has initialised the vectors yet.
    """

    def __init__(self, config: JukeboxVQVAEConfig):
        super().__init__()
        self.decay = config.codebook_decay
        self.revival_threshold = config.codebook_revival_threshold
        self.register_buffer("vectors", torch.zeros(config.codebook_size, config.codebook_dim))
        self.register_buffer("vector_sums", torch.zeros(config.codebook_size, config.codebook_dim))
        self.register_buffer("counts", torch.zeros(config.codebook_size))

    def forward(self, latents_or_codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor:
        """Finds the nearest codes of latents and their squared distances, or the vectors of codes; all in fp32.

        One entry for both ways, since accelerate moves what a module needs only when the module itself is called.

        Shapes: latents `(..., codebook_dim)` to two tensors `(...)`; codes `(...)` to `(..., codebook_dim)`.
        """
        if latents_or_codes.is_floating_point():
            return self._search(latents_or_codes)
        return F.embedding(latents_or_codes.long(), self.vectors)

    def _search(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = latents.shape[:-1]
        rows = latents.float().reshape(-1, latents.shape[-1])
        filled = F.pad(rows, (0, 0, 0, -len(rows) % SEARCH_ROWS))
        keys = self.vectors.float().t()
        key_norms = keys.square().sum(0)
        distances, codes = [], []
        with torch.autocast(latents.device.type, enabled=False):
            for tile in filled.split(SEARCH_ROWS):
                # The original's order of operations, so that codes that fp32 cannot tell apart tie as they do there.
                norms = tile.square().sum(1, keepdim=True)
                nearest = torch.addmm(norms, tile, keys, alpha=-2).add_(key_norms).min(1)
                distances.append(nearest.values)
                codes.append(nearest.indices)
        return torch.cat(codes)[: len(rows)].view(shape), torch.cat(distances)[: len(rows)].view(shape)

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict]:
        """Quantises latents `(batch, frames, codebook_dim)` and, in training mode, updates the codebook.

        In a distributed run every process has to call it in training mode, since they share their statistics.

        Returns the codes, the vectors with the straight-through gradient (without any in evaluation mode), the
        commitment loss and, in training mode, statistics. The vectors are those from before the update.
        """
        if self.training and not self.counts.any():
            self._initialize(latents)
        codes, distances = self(latents.detach())
        vectors = self(codes).to(latents.dtype)
        commitment = F.mse_loss(latents.float(), vectors.float())
        statistics = self._update(latents.detach(), codes, distances) if self.training else {}
        if self.training:
            vectors = latents + (vectors - latents).detach()
        return codes, vectors, commitment, statistics

    def _random_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """As many random latents as there are codes, the same in every process; with noise when latents are few."""
        size, width = self.vectors.shape
        if len(rows) < size:
            rows = rows.repeat(math.ceil(size / len(rows)), 1)
            rows = rows + torch.randn_like(rows) * (0.01 / math.sqrt(width))
        return first_rank(rows[torch.randperm(len(rows), device=rows.device)][:size].contiguous())

    @torch.no_grad()
    def _initialize(self, latents: torch.Tensor):
        vectors = self._random_rows(latents.float().flatten(0, -2))
        self.vectors.copy_(vectors)
        self.vector_sums.copy_(vectors)
        self.counts.fill_(1.0)

    @torch.no_grad()
    def _update(self, latents: torch.Tensor, codes: torch.Tensor, distances: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, codes = latents.float().flatten(0, -2), codes.flatten()
        sums = sum_over_ranks(torch.zeros_like(self.vector_sums).index_add_(0, codes, rows))
        counts = sum_over_ranks(torch.bincount(codes, minlength=len(self.counts)).to(self.counts))
        # Drawn whether or not a code restarts, as in the original: a seed gives the same run.
        revived = self._random_rows(rows)
        self.vector_sums.lerp_(sums, 1 - self.decay)
        self.counts.lerp_(counts, 1 - self.decay)
        alive = (self.counts >= self.revival_threshold).unsqueeze(1)
        vectors = torch.where(alive, self.vector_sums / self.counts.unsqueeze(1), revived)
        change = (vectors - self.vectors).square().mean().sqrt()
        self.vectors.copy_(vectors)

        shares = counts / counts.sum()
        return {
            "codebook_distance": distances.mean(),
            "latent_deviation": (rows - rows.mean()).square().mean().sqrt(),
            "codebook_entropy": -(shares * (shares + 1e-8).log()).sum(),
            "codebook_used": (counts >= self.revival_threshold).sum().float(),
            "codebook_alive": alive.sum().float(),
            "codebook_change": change,
        }
