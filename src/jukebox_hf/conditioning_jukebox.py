"""What a prior knows besides the codes before: labels, timing, lyrics, and the codes of the level above."""

import torch
from torch import Tensor, nn

from .attention_patterns import PATTERNS, Grid
from .configuration_jukebox import JukeboxPriorConfig, repeat_pattern
from .convolution_jukebox import JukeboxConv1d, JukeboxResidualBlock, JukeboxUpsample, SignalStream, run_growing
from .transformer_jukebox import JukeboxLayerNorm, JukeboxTransformerLayer, with_init_std


class JukeboxLabelEmbedding(nn.Module):
    """Artist and genres as one vector, which stands where the token before the first one would.

    Takes artists `(batch,)` and genres `(batch, max_genres)`, -1 for none, and gives `(batch, 1, hidden_size)`.
    """

    def __init__(self, config: JukeboxPriorConfig):
        super().__init__()
        std = 0.01 * config.init_scale
        self.artists = with_init_std(nn.Embedding(config.num_artists, config.hidden_size), std)
        self.genres = with_init_std(nn.Embedding(config.num_genres, config.hidden_size), std)

    def forward(self, artist_ids: Tensor, genre_ids: Tensor) -> Tensor:
        genres = self.genres(genre_ids.clamp(min=0)) * (genre_ids >= 0).unsqueeze(-1)
        return genres.sum(dim=1, keepdim=True) + self.artists(artist_ids).unsqueeze(1)


class JukeboxTimingEmbedding(nn.Module):
    """The song's length, and where in it each position lies, in time and as a fraction (section 4.4 of the paper).

    Takes the song's length and the window's offset `(batch,)` in samples and gives `(batch, codes, hidden_size)`.
    """

    def __init__(self, config: JukeboxPriorConfig):
        super().__init__()
        self.num_bins = config.num_time_bins
        self.num_positions = config.context_length
        self.sample_length = config.sample_length
        self.shortest = config.min_duration * config.sampling_rate
        self.longest = config.max_duration * config.sampling_rate
        for name in ("total_length", "absolute_position", "relative_position"):
            embedding = nn.Embedding(config.num_time_bins, config.hidden_size)
            setattr(self, name, with_init_std(embedding, 0.01 * config.init_scale))

    def forward(self, total_length: Tensor, offset: Tensor) -> Tensor:
        # All in fp32 from here, as in the original: the bins of positions near a boundary depend on it.
        total = total_length.float().unsqueeze(1)
        start = offset.float().unsqueeze(1)
        end = start + self.sample_length
        return (
            self.total_length(self._bins(total, self.shortest, self.longest))
            + self.absolute_position(self._bins(self._between(start, end), 0.0, self.longest))
            + self.relative_position(self._bins(self._between(start / total, (end / total).clamp(0.0, 1.0)), 0.0, 1.0))
        )

    def _between(self, start: Tensor, end: Tensor) -> Tensor:
        steps = torch.arange(self.num_positions, dtype=torch.float32, device=start.device) / self.num_positions
        return start + (end - start) * steps

    def _bins(self, values: Tensor, low: float, high: float) -> Tensor:
        return (self.num_bins * ((values - low) / (high - low))).floor().long()


class JukeboxConditioner(nn.Module):
    """The codes of the level above at this level's rate: `(batch, upper codes)` to `(batch, codes, hidden_size)`.

    It sees one window of upper codes; beyond the window's edges are zeros, never the neighbouring codes.
    """

    def __init__(self, config: JukeboxPriorConfig):
        super().__init__()
        conditioner = config.conditioner_config
        width, depth = conditioner.hidden_size, conditioner.num_residual_layers
        inner = int(conditioner.residual_expansion * width)
        embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_codes = with_init_std(embedding, 0.02 * config.init_scale)
        self.in_conv = JukeboxConv1d(config.hidden_size, width, 3, padding=1)
        self.upsamples = nn.ModuleList()
        for i, stride in enumerate(conditioner.strides):
            blocks = nn.ModuleList(
                JukeboxResidualBlock(
                    width,
                    inner,
                    conditioner.dilation_growth_rate ** (block % (conditioner.dilation_cycle or depth)),
                    conditioner.residual_scale,
                )
                for block in range(depth)
            )
            is_last = i == len(conditioner.strides) - 1
            self.upsamples.append(JukeboxUpsample(config.hidden_size if is_last else width, stride, blocks))
        self.layer_norm = JukeboxLayerNorm(config.hidden_size)

    def forward(self, upper_codes: Tensor) -> Tensor:
        states = run_growing([self.in_conv, *self.upsamples], self.embed_codes(upper_codes), SignalStream())
        return self.layer_norm(states)


class JukeboxLyricsEncoder(nn.Module):
    """The lyrics' own stack: `(batch, num_lyric_tokens)` to states `(batch, num_lyric_tokens, hidden_size)`.

    Like the music it is shifted by one: a state has seen the characters before its own, so it also predicts that one.
    """

    def __init__(self, config: JukeboxPriorConfig):
        super().__init__()
        encoder = config.lyrics_encoder_config
        self.letters = repeat_pattern(encoder)
        self.grid = Grid(encoder.num_blocks, config.num_lyric_tokens // encoder.num_blocks, num_prime=0)
        self.layers = nn.ModuleList(JukeboxTransformerLayer(encoder, letter) for letter in self.letters)
        width, scale = encoder.hidden_size, encoder.init_scale
        self.embed_tokens = with_init_std(nn.Embedding(config.lyric_vocab_size, width), 0.02 * scale)
        self.embed_positions = with_init_std(nn.Embedding(config.num_lyric_tokens, width), 0.01 * scale)
        self.start_embedding = with_init_std(nn.Embedding(1, width), 0.01 * scale)
        self.state_proj = with_init_std(nn.Linear(width, config.hidden_size), 0.02 * scale)
        self.layer_norm = JukeboxLayerNorm(config.hidden_size)
        lm_head = nn.Linear(config.hidden_size, config.lyric_vocab_size, bias=False)
        self.lm_head = with_init_std(lm_head, 0.02 * config.init_scale)

    def forward(self, lyric_ids: Tensor) -> Tensor:
        start = self.start_embedding(torch.zeros_like(lyric_ids[:, :1]))
        positions = torch.arange(lyric_ids.shape[1], device=lyric_ids.device)
        hidden_states = torch.cat([start, self.embed_tokens(lyric_ids[:, :-1])], dim=1)
        hidden_states = hidden_states + self.embed_positions(positions)
        hidden_states = hidden_states.to(self.layers[0].mlp.fc2.bias.dtype)
        for letter, layer in zip(self.letters, self.layers):
            plan = PATTERNS[letter].plan(0, lyric_ids.shape[1], self.grid, lyric_ids.device)
            hidden_states, _ = layer(hidden_states, plan)
        return self.layer_norm(self.state_proj(hidden_states.to(self.state_proj.bias.dtype)))
