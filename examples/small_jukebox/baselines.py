"""What can be said of a code without a prior: how frequent it is, alone and where another code stands beside it."""

from collections.abc import Sequence

import numpy as np

# Candidates; taken is the one that does best on songs whose codes were not counted.
ALPHAS = (0.01, 0.1, 1.0, 10.0)
STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
# Every so many training songs choose between the candidates.
CHOOSING_STEP = 10


class Unigram:
    """Frequencies of codes with add-alpha smoothing, `(n + alpha) / (N + alpha * vocab_size)`.

    Args:
        songs (`Sequence[np.ndarray]`): codes `(codes,)` of each training song.
        vocab_size (`int`): of the codebook.
        alpha (`float`, *optional*): default the best of `ALPHAS` on every tenth song, with the counts of the others.
    """

    def __init__(self, songs: Sequence[np.ndarray], vocab_size: int, alpha: float | None = None):
        if alpha is None:
            others, choosing = _split(songs)
            alpha = min(ALPHAS, key=lambda value: Unigram(others, vocab_size, value).bits(choosing).mean())
        self.alpha = alpha
        counts = np.bincount(np.concatenate(songs), minlength=vocab_size)
        self.probabilities = (counts + alpha) / (counts.sum() + alpha * vocab_size)

    def bits(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Bits of each code, of all sequences `(codes,)` one after the other."""
        return -np.log2(self.probabilities[np.concatenate(codes)])


class Conditional:
    """Frequencies of codes beside another code, interpolated with their frequencies alone.

    `p(code | context) = (n(context, code) + strength * p(code)) / (n(context) + strength)`: rare contexts say little
    and leave the unigram as it is.

    Args:
        contexts (`Sequence[np.ndarray]`): for each training song what each of its codes is seen with.
        songs (`Sequence[np.ndarray]`): the codes, of the same lengths.
        unigram ([`Unigram`]): of the same songs.
        strength (`float`, *optional*): default the best of `STRENGTHS` on every tenth song, with the counts of the
            others.
    """

    def __init__(
        self,
        contexts: Sequence[np.ndarray],
        songs: Sequence[np.ndarray],
        unigram: Unigram,
        strength: float | None = None,
    ):
        self.unigram, size = unigram, len(unigram.probabilities)
        if strength is None:
            (known, held_contexts), (others, choosing) = _split(contexts), _split(songs)
            trial = Conditional(known, others, Unigram(others, size, unigram.alpha), STRENGTHS[0])
            strength = min(STRENGTHS, key=lambda value: trial._bits(held_contexts, choosing, value).mean())
        self.strength = strength
        pairs = np.concatenate(contexts).astype(np.int64) * size + np.concatenate(songs)
        self.counts = np.bincount(pairs, minlength=size**2).reshape(size, size)
        self.totals = self.counts.sum(axis=1)

    def bits(self, contexts: Sequence[np.ndarray], codes: Sequence[np.ndarray]) -> np.ndarray:
        """Bits of each code, of all sequences one after the other."""
        return self._bits(contexts, codes, self.strength)

    def _bits(self, contexts: Sequence[np.ndarray], codes: Sequence[np.ndarray], strength: float) -> np.ndarray:
        context, code = np.concatenate(contexts), np.concatenate(codes)
        backed_off = strength * self.unigram.probabilities[code]
        return -np.log2((self.counts[context, code] + backed_off) / (self.totals[context] + strength))


def bigram(songs: Sequence[np.ndarray], vocab_size: int) -> Conditional:
    """Counts codes after the code before."""
    return Conditional([codes[:-1] for codes in songs], [codes[1:] for codes in songs], Unigram(songs, vocab_size))


def bigram_bits(counted: Conditional, windows: Sequence[np.ndarray]) -> np.ndarray:
    """Bits of each code of windows; a window's first code, before which a prior sees none either, has its unigram's."""
    after = counted.bits([codes[:-1] for codes in windows], [codes[1:] for codes in windows])
    return np.concatenate([counted.unigram.bits([codes[:1] for codes in windows]), after])


def _split(songs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    choosing = list(songs[::CHOOSING_STEP])
    others = [codes for index, codes in enumerate(songs) if index % CHOOSING_STEP]
    if not others:
        raise ValueError(f"{len(songs)} training songs: smoothing is chosen on one of them, so give two or more.")
    return others, choosing
