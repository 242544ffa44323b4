"""What linear probes find out about music from a prior's hidden states, and from simpler features."""

from collections.abc import Callable

import numpy as np
import torch
from material import Excerpts, Material, batches, cut_excerpts, original_audio
from rich.console import Console
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sound_features import chroma, key_scores, mel_spectra, parse_key

from jukebox_hf import JukeboxPriorModel
from jukebox_hf.embeddings import first_layers

# Of the logistic regression, the smaller the stronger the regularisation.
INVERSE_STRENGTHS = np.logspace(-4, 1, 6).tolist()
FOLDS = 5
RESAMPLES = 1000
BATCH_SIZE = 16
# Takes references and estimates to a score for each.
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def fit_probe(features: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> GridSearchCV:
    """Fits a logistic regression to standardised features; its regularisation is chosen on songs left out in turn."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = GroupKFold(min(FOLDS, len(np.unique(groups))))
    search = GridSearchCV(probe, {"logisticregression__C": INVERSE_STRENGTHS}, cv=folds)
    return search.fit(features, targets, groups=groups)


def interval(scores: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of the mean score when songs are drawn anew: excerpts of one song say much the same."""
    names, members = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(members, scores), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def shuffled_score(references: np.ndarray, estimates: np.ndarray, score: Score) -> float:
    """The mean score of these estimates if every excerpt could have any other's reference: what chance gives."""
    return float(np.mean([score(references, np.full(len(references), estimate)).mean() for estimate in estimates]))


def accuracy(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    return (references == estimates).astype(float)


def scored(references: np.ndarray, estimates: np.ndarray, songs: np.ndarray, score: Score = accuracy) -> dict:
    """Gives the mean score with its interval, and that of chance."""
    scores = score(references, estimates)
    return {
        "score": float(scores.mean()),
        "interval": interval(scores, songs),
        "chance": shuffled_score(references, estimates, score),
    }


def measure_embeddings(material: Material, console: Console, train: int, test: int, seed: int = 0) -> dict:
    """Probes excerpts of one context of the top prior for instrument and key.

    The prior is told neither: artist and genre are unknown, and each excerpt is the start of the shortest song.
    """
    prior = material.model.priors[material.top]
    layer = (prior.config.num_hidden_layers + 1) // 2
    excerpts = [
        cut_excerpts(songs, material.top, prior.config.context_length, wanted)
        for songs, wanted in ((material.train, train), (material.test, test))
    ]
    torch.manual_seed(seed)
    untrained = JukeboxPriorModel(type(prior.config).from_dict(prior.config.to_dict())).eval()
    audio = [
        original_audio(songs, cut, prior.config.hop_length, material.sampling_rate)
        for songs, cut in zip((material.train, material.test), excerpts)
    ]
    features = {
        f"prior, layer {layer}": [mean_states(prior, layer, cut, console) for cut in excerpts],
        f"untrained prior, layer {layer}": [mean_states(untrained, layer, cut, console) for cut in excerpts],
        "mel spectra, mean and deviation": [mel_spectra(sound, material.sampling_rate) for sound in audio],
        "chroma, mean": [chroma(sound, material.sampling_rate) for sound in audio],
    }
    rows = track(features.items(), "Probing", console=console, transient=True)
    return {
        "train": len(excerpts[0]),
        "test": len(excerpts[1]),
        "test_songs": len(np.unique(excerpts[1].songs)),
        "seconds": prior.config.sample_length / material.sampling_rate,
        "features": {name: probe_features(*pair, *excerpts) for name, pair in rows},
    }


def probe_features(train: np.ndarray, test: np.ndarray, known: Excerpts, held_out: Excerpts) -> dict:
    """Probes one kind of features for both labels."""
    probe = fit_probe(train, np.array(known.artists), known.songs)
    figures = {
        "width": train.shape[1],
        "instrument": scored(np.array(held_out.artists), probe.predict(test), held_out.songs),
    }
    references, targets = (np.array([parse_key(name) for name in cut.genres]) for cut in (held_out, known))
    estimates = fit_probe(train, targets, known.songs).predict(test)
    figures["key"] = scored(references, estimates, held_out.songs)
    figures["key_weighted"] = scored(references, estimates, held_out.songs, key_scores)
    return figures


@torch.no_grad()
def mean_states(prior: JukeboxPriorModel, layer: int, excerpts: Excerpts, console: Console) -> np.ndarray:
    """The mean `(excerpts, hidden_size)` over time of a layer's output, from which no later layer is run."""
    prior = first_layers(prior, layer)
    means = []
    for rows in track(batches(len(excerpts), BATCH_SIZE), "Embedding", console=console, transient=True):
        outputs = prior(excerpts.codes[rows], output_hidden_states=[layer], logits_to_keep=1)
        means.append(outputs.hidden_states[layer].float().mean(dim=1))
    return torch.cat(means).numpy()
