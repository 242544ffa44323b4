"""The original's Adam and learning rate, and the average of the weights."""

import numpy as np
import pytest
import torch
from torch import nn
from training_parts import arguments

from jukebox_hf.training import JukeboxAdam, WeightAverage, jukebox_schedule


def _by_hand(weights, gradients, rates, beta1, beta2, eps, decay):
    """The original's step, in float64, as its formula says."""
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step, (gradient, rate) in enumerate(zip(gradients, rates), start=1):
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        size = rate * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        weights = weights - size * (mean / (np.sqrt(square) + eps) + decay * weights)
    return weights


# An eps as large as the gradients tells where it is added.
@pytest.mark.parametrize("eps", [1e-8, 0.3])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_the_originals(eps, decay):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal((5, 3)), rng.standard_normal((6, 5, 3))
    rates = [0.0, 0.01, 0.02, 0.02, 0.05, 0.01]
    param = nn.Parameter(torch.tensor(start))
    optimizer = JukeboxAdam([param], betas=(0.8, 0.925), eps=eps, weight_decay=decay)
    for gradient, rate in zip(gradients, rates):
        optimizer.param_groups[0]["lr"] = rate
        param.grad = torch.tensor(gradient)
        optimizer.step()
    expected = _by_hand(start, gradients, rates, 0.8, 0.925, eps, decay)
    np.testing.assert_allclose(param.detach().numpy(), expected, rtol=1e-12)


def test_parameters_without_gradient_stay_and_count_no_step():
    first, second = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = JukeboxAdam([first, second], lr=0.1, betas=(0.9, 0.99), weight_decay=0.2)
    first.grad = torch.full((2,), 0.5, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(second, torch.ones(2, dtype=torch.float64))
    second.grad = torch.full((2,), 0.5, dtype=torch.float64)
    optimizer.step()
    once = _by_hand(np.ones(2), [np.full(2, 0.5)], [0.1], 0.9, 0.99, 1e-8, 0.2)
    twice = _by_hand(np.ones(2), [np.full(2, 0.5)] * 2, [0.1] * 2, 0.9, 0.99, 1e-8, 0.2)
    np.testing.assert_allclose(second.detach().numpy(), once)
    np.testing.assert_allclose(first.detach().numpy(), twice)


def test_adam_goes_on_from_its_state(tmp_path):
    def run(param, optimizer, steps):
        for step in steps:
            param.grad = torch.full_like(param, 0.1 * (step + 1))
            optimizer.step()

    whole = nn.Parameter(torch.ones(3))
    run(whole, JukeboxAdam([whole]), range(6))
    param = nn.Parameter(torch.ones(3))
    optimizer = JukeboxAdam([param])
    run(param, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = JukeboxAdam([param], lr=1.0)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    run(param, resumed, range(3, 6))
    assert torch.equal(param, whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lr": -1}, "lr=-1"), ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\)"), ({"weight_decay": -0.1}, "weight_decay")],
)
def test_adam_refuses_what_makes_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        JukeboxAdam([nn.Parameter(torch.ones(1))], **settings)


def _rates(steps, **settings):
    optimizer = JukeboxAdam([nn.Parameter(torch.ones(1))], lr=2.0)
    schedule = jukebox_schedule(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_rate_warms_up_from_zero_and_stays():
    assert _rates(7, warmup_steps=4) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert _rates(2, warmup_steps=0) == [2.0, 2.0]


def test_rate_anneals_to_zero():
    assert _rates(9, warmup_steps=2, anneal_start=3, anneal_steps=4) == [0, 1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="anneal_steps=-1"):
        _rates(1, anneal_steps=-1)


@pytest.mark.parametrize(("asked", "expected"), [(-1, 70), (100, 70), (50, 50)])
def test_training_ends_where_the_rate_is_zero(tmp_path, asked, expected):
    assert arguments(tmp_path, max_steps=asked, anneal_start=50, anneal_steps=20).max_steps == expected
    assert arguments(tmp_path, max_steps=asked).max_steps == asked


def _model(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).to(dtype)
    model[1].bias.requires_grad_(False)
    return model


def test_average_of_half_precision_weights_is_kept_in_fp32():
    model = _model(torch.bfloat16)
    average = WeightAverage(model, 0.9)
    expected = {name: p.detach().double().numpy() for name, p in model.named_parameters() if p.requires_grad}
    assert "1.bias" not in expected and average.state_dict().keys() == expected.keys()
    for _ in range(5):
        with torch.no_grad():
            for param in model.parameters():
                # Less than bf16 could add to the average of weights of about 1.
                param.mul_(1.01)
        average.update()
        for name, param in model.named_parameters():
            if param.requires_grad:
                expected[name] = 0.9 * expected[name] + 0.1 * param.detach().float().numpy()
    for name, value in average.state_dict().items():
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-6)


def test_average_takes_the_place_of_the_weights_for_a_while():
    model = _model()
    average = WeightAverage(model, 0.5)
    start = {name: param.detach().clone() for name, param in model.named_parameters()}
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1.0)
    trained = {name: param.detach().clone() for name, param in model.named_parameters()}
    average.update()
    with pytest.raises(RuntimeError, match="on the way"), average.applied(), average.applied():
        assert torch.allclose(model[0].weight, start["0.weight"] + 0.5)
        assert torch.equal(model[1].bias, trained["1.bias"])
        raise RuntimeError("on the way")
    assert all(torch.equal(param, trained[name]) for name, param in model.named_parameters())


def test_average_refuses_other_weights_and_decays():
    with pytest.raises(ValueError, match="ema_decay=1"):
        WeightAverage(_model(), 1.0)
    with pytest.raises(ValueError, match=r"another model: 2.weight"):
        average = WeightAverage(_model(), 0.9)
        average.load_state_dict(average.state_dict() | {"2.weight": torch.ones(1)})
