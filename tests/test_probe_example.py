"""The probe of JukeMIR: its grid, its early stopping, its metrics, and the whole program."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import jukemir_probe
from jukemir_probe import (
    Classification,
    KeyDetection,
    ProbeSettings,
    Regression,
    best_probe,
    grid,
    parse_key,
    train_probe,
    weighted_key_score,
)

LINEAR = ProbeSettings(True, None, 64, 1e-2, 0.25, None)


def blobs(count: int, seed: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around corners of a cube of eight dimensions."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, size=count)
    return (np.eye(8)[targets] * 3 + rng.normal(0, spread, (count, 8))).astype(np.float32), targets


def test_the_grid_is_the_papers():
    settings = grid("full")
    assert len(settings) == len(set(settings)) == 216
    assert {s.hidden_size for s in settings} == {None, 512} and {s.batch_size for s in settings} == {64, 256}
    assert {s.weight_decay for s in settings} == {None, 1e-4, 1e-3} and {s.standardize for s in settings} == {
        False,
        True,
    }
    assert set(grid("small")) < set(settings)


@pytest.mark.parametrize("hidden_size", [None, 16])
def test_it_learns_what_can_be_told_apart(hidden_size):
    task = Classification("abc")
    settings = [ProbeSettings(s, hidden_size, 64, 1e-2, 0.25, None) for s in (False, True)]
    best = best_probe(settings, task, blobs(200, 0), blobs(60, 1), patience=20)
    features, targets = blobs(60, 2)
    assert best.valid_score > 0.95 and task.score(best.outputs(features), targets) > 0.95


def test_it_finds_nothing_in_noise():
    features, targets = blobs(300, 0, spread=0.0)
    noise = np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    task = Classification("abc")
    probe = train_probe(LINEAR, task, (noise[:200], targets[:200]), (noise[200:], targets[200:]), patience=10)
    other = np.random.default_rng(2).normal(size=(300, 8)).astype(np.float32)
    assert abs(task.score(probe.outputs(other), targets) - 1 / 3) < 0.12


def test_the_best_weights_come_back_after_patience(monkeypatch):
    task, scores = Classification("abc"), iter([0.1, 0.3, 0.2, 0.9, 0.9, 0.5, 0.4, 0.3])
    seen = []
    monkeypatch.setattr(task, "score", lambda outputs, targets: seen.append(outputs) or next(scores))
    train, valid = blobs(100, 0), blobs(30, 1)
    probe = train_probe(LINEAR, task, train, valid, eval_every=2, patience=4)
    # The fourth look is the best; an equal one is no gain, and four looks without any end it.
    assert (probe.valid_score, probe.best_step, probe.num_steps, len(seen)) == (0.9, 6, 16, 8)
    np.testing.assert_array_equal(probe.outputs(valid[0]), seen[3])


def test_features_are_scaled_by_the_training_clips_alone():
    train, valid = blobs(100, 0), blobs(30, 1)
    probe = train_probe(LINEAR, Classification("abc"), train, valid, max_steps=8)
    np.testing.assert_allclose(probe.scaler.mean_, train[0].astype(np.float64).mean(0), rtol=1e-5)
    np.testing.assert_allclose(probe.scaler.scale_, train[0].astype(np.float64).std(0), rtol=1e-5)
    plain = train_probe(
        ProbeSettings(False, *list(vars(LINEAR).values())[1:]), Classification("abc"), train, valid, max_steps=8
    )
    np.testing.assert_array_equal(plain.scaler.transform(valid[0]), valid[0])


def test_dropout_stands_before_each_matrix():
    model = jukemir_probe.make_model(8, 3, ProbeSettings(True, 16, 64, 1e-3, 0.5, None))
    assert [type(layer).__name__ for layer in model] == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [type(layer).__name__ for layer in jukemir_probe.make_model(8, 3, LINEAR)] == ["Dropout", "Linear"]


@pytest.mark.parametrize(
    "reference, estimate, score",
    [
        ("C major", "C major", 1.0),
        ("C major", "G major", 0.5),
        ("G major", "C major", 0.0),
        ("A minor", "E minor", 0.5),
        ("C major", "A minor", 0.3),
        ("A minor", "C major", 0.3),
        ("C major", "C minor", 0.2),
        ("F# major", "Gb minor", 0.2),
        ("C major", "D major", 0.0),
        ("C major", "E minor", 0.0),
    ],
)
def test_keys_are_scored_as_giantsteps_scores_them(reference, estimate, score):
    assert weighted_key_score(parse_key(reference), parse_key(estimate)) == score
    task = KeyDetection([reference, estimate, "B minor"])
    outputs = np.eye(24)[task.targets([estimate])]
    assert task.score(outputs, task.targets([reference])) == score


def test_numbers_are_scored_by_r2():
    task = Regression(["1 2", "3 5", "2 2"])
    targets = task.targets(["1 2", "3 5", "2 2"])
    assert task.score(targets, targets) == 1
    assert task.score(np.tile(task.constant(targets), (3, 1)), targets) == pytest.approx(0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Classification(["rock"] * 4), "All clips have the label 'rock'"),
        (lambda: Regression(["1"] * 4), "All clips have the label '1'"),
        (lambda: Regression(["1", "1 2"]), "Some labels have 1 numbers, others 2"),
        (lambda: Regression(["1", "loud"]).targets(["1", "loud"]), "is no number"),
        (lambda: KeyDetection(["H major", "C major"]), "'H major' is no key"),
    ],
)
def test_bad_labels_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / "probe_embeddings.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Ten low and ten high tones, in a folder for each."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for name, pitch in (("low", 110), ("high", 1760)):
        (folder / name).mkdir()
        for index in range(10):
            time = np.arange(8192) / 44100
            tone = 0.4 * np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * time) + rng.normal(0, 0.01, len(time))
            soundfile.write(folder / name / f"{index}.wav", tone, 44100)
    (folder / "low" / "broken.wav").write_bytes(b"no audio")
    return folder


def test_the_program_probes_a_folder_and_keeps_its_embeddings(clips, converted, tmp_path):
    # The released model is not here: a small one with the presets' layers replaced.
    model = ["--model", converted("prior-5b-style"), "--vqvae", converted("vqvae-three-level")]
    kept = tmp_path / "kept.npz"
    command = ["--data", clips, *model, "--preset", "default", "--layer", 3, "--max-steps", 40, "--embeddings", kept]
    first = run(*command)
    assert first.returncode == 0, first.stderr
    assert "Left out: low/broken.wav" in first.stdout and "12 train, 4 valid, 4 test files" in first.stdout
    with np.load(kept) as file:
        assert file["embeddings"].shape == (20, 32) and len(set(file["names"])) == 20
    again = run(*command)
    assert again.returncode == 0 and again.stdout.splitlines()[-6:] == first.stdout.splitlines()[-6:]
    assert "│ embeddings" in again.stdout
    other = run(*command[:-6], "--layer", 4, *command[-4:])
    assert other.returncode == 1 and "is of another model or recipe" in other.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "missing"], "Error: missing is no folder"),
        (["--layer", "9"], "layers=[9]: there are 4"),
    ],
)
def test_the_programs_errors_are_one_line(arguments, message):
    done = run(*arguments)
    lines = [line for line in done.stderr.splitlines() if "Error" in line]
    assert done.returncode == 1 and len(lines) == 1
    assert message in lines[0]
