"""Two processes train as one does on the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_in_processes import train

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    # Not accelerate's launcher, which starts one process on a CPU without MPI and says nothing.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launch, str(TESTS / "train_in_processes.py"), str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "one").mkdir()
    train(folder / "one", 4, folder / "music")
    return [torch.load(path / "results.pt", weights_only=False) for path in (folder, folder / "one")]


@pytest.mark.parametrize("kind", ["JukeboxVQVAETrainer", "JukeboxPriorTrainer"])
def test_two_processes_train_as_one_on_the_whole_batch(results, kind):
    (losses, metrics, weights, line), (lone_losses, lone_metrics, lone_weights, lone_line) = (
        run[kind] for run in results
    )
    assert len(losses) == 4 and losses == pytest.approx(lone_losses, rel=1e-5)
    assert metrics == pytest.approx(lone_metrics, rel=1e-4)
    assert line == pytest.approx(lone_line, rel=1e-3)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, lone_weights[name], rtol=1e-4, atol=1e-5, msg=name)
