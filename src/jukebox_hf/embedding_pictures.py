"""Pictures of a dataset of embeddings: how alike its clips are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .embedding_plan import EmbeddingPlan
from .embedding_shards import read_vectors
from .pictures import require_matplotlib
from .whole_files import whole_file

# More clips are neither seen in a picture nor decomposed in seconds; of them so many are drawn, evenly picked.
MAX_CLIPS = 1000
MAX_NAMES = 40
MAX_NAME_LENGTH = 30


def save_embedding_pictures(folder: Path, plan: EmbeddingPlan) -> list[Path]:
    """Draws for each layer the cosine similarity of clips, in the input's order, and a map of them; gives the files.

    A clip stands for itself by the mean of its windows and frames.

    Raises:
        ImportError: matplotlib is missing.
    """
    require_matplotlib()
    files = []
    for layer, means in clip_means(folder, plan).items():
        names = [clip.path for clip in plan.clips if clip.path in means]
        picked = names[:: -(-len(names) // MAX_CLIPS)]
        vectors = np.stack([means[name] for name in picked])
        title = f"Layer {layer}, {len(names)} clips"
        if len(picked) < len(names):
            title += f", of which {len(picked)} are drawn"
        files += [folder / f"similarity-layer-{layer}.png", folder / f"map-layer-{layer}.png"]
        save_similarities(files[-2], picked, vectors, title)
        save_map(files[-1], picked, vectors, title)
    return files


def clip_means(folder: Path, plan: EmbeddingPlan) -> dict[int, dict[str, np.ndarray]]:
    """Gives for each layer each clip's mean `(hidden_size,)` over windows and frames."""
    sums: dict[int, dict[str, np.ndarray]] = {layer: {} for layer in plan.settings["recipe"]["layers"]}
    counts: dict[tuple[int, str], int] = {}
    for shard in plan.done(folder):
        for name, layer, frames in read_vectors(plan.path(folder, shard)):
            total = frames.sum(0, dtype=np.float64)
            sums[layer][name] = sums[layer].get(name, 0.0) + total
            counts[layer, name] = counts.get((layer, name), 0) + len(frames)
    means = {layer: {name: sums_of[name] / counts[layer, name] for name in sums_of} for layer, sums_of in sums.items()}
    return {layer: of_clips for layer, of_clips in means.items() if of_clips}


def cosine_similarities(vectors: np.ndarray) -> np.ndarray:
    """Gives the cosine similarities `(clips, clips)` of vectors `(clips, hidden_size)`; 0 for vectors of zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return unit @ unit.T


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives each vector's first two principal components `(clips, 2)`, and their shares of the variance `(2,)`."""
    centred = vectors - vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    components, variances = np.zeros((len(vectors), 2)), np.zeros(2)
    count = min(2, len(values))
    components[:, :count] = (left * values)[:, :count]
    if values.any():
        variances[:count] = (values**2 / (values**2).sum())[:count]
    return components, variances


def save_similarities(path: Path, names: Sequence[str], vectors: np.ndarray, title: str):
    """Draws the cosine similarities of clips as a PNG."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(cosine_similarities(vectors), vmax=1, cmap="magma", interpolation="nearest")
    figure.colorbar(image, ax=panel, label="cosine similarity")
    panel.set_title(title)
    if len(names) <= MAX_NAMES:
        labels = [_short(name) for name in names]
        panel.set_xticks(range(len(names)), labels, rotation=90, fontsize=7, parse_math=False)
        panel.set_yticks(range(len(names)), labels, fontsize=7, parse_math=False)
    else:
        panel.set_xlabel("clip")
        panel.set_ylabel("clip")
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def save_map(path: Path, names: Sequence[str], vectors: np.ndarray, title: str):
    """Draws clips where their first two principal components are, as a PNG."""
    require_matplotlib()
    from matplotlib.figure import Figure

    components, shares = principal_components(vectors)
    figure = Figure(figsize=(9, 8), layout="constrained")
    panel = figure.subplots()
    panel.scatter(*components.T, s=14)
    # Room for the names.
    panel.margins(0.12)
    for label, axis, share in zip(("first", "second"), (panel.set_xlabel, panel.set_ylabel), shares):
        axis(f"{label} principal component, {share:.0%} of the variance")
    panel.set_title(title)
    if len(names) <= MAX_NAMES:
        for name, point in zip(names, components):
            panel.annotate(_short(name), point, xytext=(4, 4), textcoords="offset points", fontsize=7, parse_math=False)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _short(name: str) -> str:
    name = Path(name).name
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3]}..."
