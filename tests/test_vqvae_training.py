"""Codebooks that learn, gradients, and two processes that train as one."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from jukebox_hf import JukeboxVQVAEConfig, JukeboxVQVAEModel
from jukebox_hf.codebook_jukebox import JukeboxCodebook
from jukebox_hf.losses_jukebox import reconstruction_loss, spectral_convergence

CONFIG = dict(
    num_downsamples=[3, 1], strides=[2, 2], level_multipliers=[2, 1], hidden_size=4, num_residual_layers=2,
    codebook_size=16, codebook_dim=8, linf_k=64, multispectral_weight=0.01,
)  # fmt: skip


def _model(**settings) -> JukeboxVQVAEModel:
    torch.manual_seed(0)
    return JukeboxVQVAEModel(JukeboxVQVAEConfig(**CONFIG, **settings)).train()


def _audio(batch: int = 4, samples: int = 2048) -> torch.Tensor:
    return torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(1)) * 0.3


def _are_rows_of(vectors: torch.Tensor, latents: torch.Tensor) -> bool:
    return bool((vectors.unsqueeze(1) == latents.flatten(0, 1)).all(-1).any(1).all())


def test_first_batch_initialises_codebooks_from_its_latents():
    model = _model(codebook_revival_threshold=0.0)
    latents = torch.randn(2, 50, 8)
    codebook = model.codebooks[0]
    codebook._initialize(latents)
    assert _are_rows_of(codebook.vectors, latents)
    assert len(codebook.vectors.unique(dim=0)) == 16
    assert torch.equal(codebook.counts, torch.ones(16)) and torch.equal(codebook.vector_sums, codebook.vectors)


def test_few_latents_fill_the_codebook_with_noisy_copies():
    codebook = _model().codebooks[0]
    latents = torch.randn(1, 5, 8)
    codebook._initialize(latents)
    distances = torch.cdist(codebook.vectors, latents[0]).min(dim=1).values
    assert distances.min() > 0 and distances.max() < 10 * 0.01
    assert len(codebook.vectors.unique(dim=0)) == 16


def test_unused_codes_restart_and_keep_their_statistics():
    codebook = JukeboxCodebook(JukeboxVQVAEConfig(**CONFIG)).train()
    codebook.vectors.copy_(torch.randn(16, 8))
    codebook.vectors[3] = 1e3  # no latent comes near it
    codebook.vector_sums.copy_(codebook.vectors)
    codebook.counts.fill_(1.0)
    latents = torch.randn(1, 400, 8)
    *_, statistics = codebook.quantize(latents)
    assert torch.isclose(codebook.counts[3], torch.tensor(0.99))
    assert torch.allclose(codebook.vector_sums[3], torch.full((8,), 990.0))
    assert _are_rows_of(codebook.vectors[3:4], latents)
    assert statistics["codebook_alive"] < 16


def test_quantised_latents_pass_the_gradient_straight_through_in_training_only():
    codebook = _model().codebooks[0]
    latents = torch.randn(1, 40, 8, requires_grad=True)
    _, vectors, _, _ = codebook.quantize(latents)
    vectors.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))
    _, vectors, commitment, statistics = codebook.eval().quantize(latents)
    assert not vectors.requires_grad and commitment.requires_grad and statistics == {}


def test_training_learns_and_uses_its_codes():
    model = _model()
    audio = torch.sin(torch.arange(2048) * torch.linspace(0.02, 0.2, 4).unsqueeze(1)).unsqueeze(1) * 0.5
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        output = model(audio)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert output.metrics["codebook_entropy"] > 1.0


def test_training_resumes_exactly(tmp_path):
    def step(model):
        torch.manual_seed(7)
        output = model(_audio())
        output.loss.backward()
        return output.loss, [parameter.grad for parameter in model.parameters()]

    model = _model()
    model(_audio())
    model.save_pretrained(tmp_path)
    resumed = JukeboxVQVAEModel.from_pretrained(tmp_path).train()
    (loss, gradients), (resumed_loss, resumed_gradients) = step(model), step(resumed)
    assert torch.equal(loss, resumed_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, resumed_gradients))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), resumed.buffers()))


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = _model()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.encoders[0].blocks[0].downsamples[0].gradient_checkpointing
        torch.manual_seed(3)
        model(_audio()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_a_step_computes_no_spectrogram_and_no_gradient_for_nothing(monkeypatch):
    seen, stft = [], torch.stft
    monkeypatch.setattr(torch, "stft", lambda audio, *sizes, **how: seen.append(audio) or stft(audio, *sizes, **how))
    model = _model(spectral_weight=0.0)
    model(_audio())
    # Three STFTs of the multi-scale loss, and the one whose loss has no weight here, but is reported.
    assert sum(torch.equal(audio, _audio()[:, 0]) for audio in seen) == 4
    assert sum(audio.requires_grad for audio in seen) == 3 * model.config.num_levels


def test_every_parameter_starts_as_pytorch_starts_it():
    model = _model()
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        bound = 1 / math.sqrt(module.weight.shape[1] * module.weight.shape[2])
        assert parameter.abs().max() <= bound
        if parameter.numel() > 30:
            assert parameter.abs().max() > 0.8 * bound
    assert not any(buffer.any() for buffer in model.codebooks.buffers())


def test_loss_of_silence_is_finite():
    model = _model()
    output = model(torch.zeros(2, 1, 2048))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert spectral_convergence(torch.ones(1, 4096), torch.zeros(1, 4096)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(_audio(samples=2049)), r"2049 samples .* multiple of 16.* 2048"),
        (lambda model: model(_audio(), padding_mask=torch.arange(2048).repeat(4, 1) < 2000), "crop them"),
        (lambda model: model(_audio(samples=1024)), "1024 samples is too short .* more than 1024"),
        (
            lambda model: reconstruction_loss("linf", _audio()[:, 0, :32], _audio()[:, 0, :32], model.config),
            "linf_k=64",
        ),
    ],
)
def test_what_has_no_loss_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(_model())


def test_clips_shorter_than_linf_k_train_on_other_losses():
    assert "linf_loss" in _model(reconstruction_loss="l2")(_audio(samples=1536)).metrics
    model = _model(reconstruction_loss="l2")
    model.config.linf_k = 4096
    output = model(_audio(samples=1536))
    assert output.loss.isfinite() and "linf_loss" not in output.metrics


def test_reconstruction_without_loss_takes_any_length():
    output = _model().eval()(_audio(samples=1001), return_loss=False)
    assert output.loss is None and output.metrics is None
    assert [audio.shape[-1] for audio in output.audio_values] == [1000, 992]


def _run_ranks(function, tmp_path, world_size=2):
    mp.spawn(_rank, (world_size, str(tmp_path / "store"), function, tmp_path), nprocs=world_size)
    return [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(world_size)]


def _rank(rank, world_size, store, function, tmp_path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    torch.save(function(rank), tmp_path / f"rank{rank}.pt")
    dist.destroy_process_group()


def _train_rank_with_restarts(rank):
    # Buffers are not broadcast: the codebooks agree because of the summed statistics and the shared random rows alone.
    model = DistributedDataParallel(_model(codebook_revival_threshold=20.0), broadcast_buffers=False)
    torch.manual_seed(100 + rank)
    for _ in range(3):
        output = model(torch.randn(2, 1, 2048) * 0.3)
    assert output.metrics["codebook_alive"] < 16  # so that restarts took part
    return dict(model.module.named_buffers())


def _train_rank_half_batch(rank):
    model = DistributedDataParallel(_with_codes(_model(codebook_revival_threshold=0.0)), broadcast_buffers=False)
    model(_audio()[2 * rank : 2 * rank + 2]).loss.backward()
    return dict(model.module.named_buffers()) | {name: p.grad for name, p in model.module.named_parameters()}


def _with_codes(model):
    generator = torch.Generator().manual_seed(5)
    for codebook in model.codebooks:
        codebook._initialize(torch.randn(1, 16, 8, generator=generator) * 0.3)
    return model


def test_two_processes_hold_identical_codebooks(tmp_path):
    first, second = _run_ranks(_train_rank_with_restarts, tmp_path)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_train_as_one_on_the_whole_batch(tmp_path):
    first, second = _run_ranks(_train_rank_half_batch, tmp_path)
    torch.manual_seed(0)
    model = _with_codes(_model(codebook_revival_threshold=0.0))
    model(_audio()).loss.backward()
    alone = dict(model.named_buffers()) | {name: p.grad for name, p in model.named_parameters()}
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-5, msg=name)
