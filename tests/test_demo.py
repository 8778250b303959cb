"""The demo: words, flow, metrics, model and sampler, at tiny sizes."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_cases import VOCABULARY, run_of, save_tiny, settings, tiny_model, words_of

from chipmunk_kernels.demo import command, flow, metrics
from chipmunk_kernels.demo.model import (
    DiffusionTransformer,
    load_model,
)
from chipmunk_kernels.demo.sample import (
    Sampler,
    draw_all,
    equal_time_steps,
    make_sparse,
)
from chipmunk_kernels.demo.words import PAD


@pytest.fixture
def model() -> DiffusionTransformer:
    return tiny_model()


@pytest.fixture
def weights(model: DiffusionTransformer, tmp_path: Path) -> Path:
    return save_tiny(model, tmp_path)


def sampler(model: DiffusionTransformer, **changes: object) -> Sampler:
    chosen = settings(**changes)
    return Sampler(model, chosen, words_of(*chosen.prompts))


# Words


def test_prompt_becomes_ids_padded_and_cut() -> None:
    assert VOCABULARY.encode_prompt("Red-APPLE, red!", 4) == ([5, 1, PAD, PAD], [])
    assert VOCABULARY.encode_prompt("red green cat face", 2) == ([5, 4], [])


def test_unknown_word_is_named_with_a_near_one() -> None:
    ids, remarks = VOCABULARY.encode_prompt("aple cat", 3)
    assert ids == [2, PAD, PAD]
    assert remarks == ["'aple' is unknown (near: apple)"]


def test_prompt_without_a_known_word_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt: expected at least one known word, got 'zzz qq'"):
        VOCABULARY.encode_prompt("zzz qq", 3)


# Flow


def test_time_grid_runs_from_noise_to_picture() -> None:
    assert flow.time_grid(4, 64).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    torch.testing.assert_close(flow.time_grid(2, 128), torch.tensor([1.0, 2 / 3, 0.0]))
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        flow.time_grid(0, 32)


def test_noise_of_a_seed_does_not_depend_on_the_others() -> None:
    pair, single = flow.noise([7, 8], 16), flow.noise([8], 16)
    assert pair.shape == (2, 3, 16, 16)
    assert torch.equal(pair[1], single[0])
    assert not torch.equal(pair[0], pair[1])


@pytest.mark.parametrize("steps", [1, 5])
def test_constant_velocity_is_integrated_exactly(steps: int) -> None:
    start = flow.noise([0], 16)
    ids = torch.tensor([[1, 2]])

    def velocity(x: torch.Tensor, t: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 3.0 if words.any() else 1.0)

    *_, end = flow.integrate(velocity, velocity, start, ids, steps=steps, guidance=2.5)
    # Guidance: 1 + 2.5 (3 - 1) = 6, over a time of -1.
    torch.testing.assert_close(end, start - 6)


def test_guidance_one_needs_no_second_branch() -> None:
    def refuse(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the unconditional branch was called")

    start = flow.noise([0], 16)
    *_, end = flow.integrate(
        lambda x, t, words: x * 0 + 2, refuse, start, torch.ones(1, 1), steps=3, guidance=1
    )
    torch.testing.assert_close(end, start - 2)


def test_pixels_are_rounded_and_clamped() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 9.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert flow.to_pixels(x)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


# Metrics


def test_psnr_of_a_constant_difference() -> None:
    a = torch.full((12, 12, 3), 100, dtype=torch.uint8)
    assert metrics.psnr(a + 5, a) == pytest.approx(10 * math.log10(65025 / 25))
    assert metrics.psnr(a, a) == math.inf


def test_psnr_under_a_mask_counts_only_those_pixels() -> None:
    a = torch.full((12, 12, 3), 255, dtype=torch.uint8)
    a[2:4, 2:4] = torch.tensor([250, 240, 250], dtype=torch.uint8)
    mask = metrics.foreground(a)
    assert mask.sum() == 4
    b = a.clone()
    b[0] = 0  # outside of the mask
    b[2, 2] -= 10  # one pixel of four
    assert metrics.psnr(b, a, mask) == pytest.approx(10 * math.log10(65025 / 25))
    assert math.isnan(metrics.psnr(a, a, torch.zeros(12, 12, dtype=torch.bool)))


def test_ssim_of_constant_pictures() -> None:
    a = torch.full((16, 16, 3), 100, dtype=torch.uint8)
    c1 = 6.5025
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert metrics.ssim(a + 20, a) == pytest.approx(expected, rel=1e-9)
    assert metrics.ssim(a, a) == pytest.approx(1)


def test_ssim_of_one_window_by_its_definition() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 256, (2, 11, 11, 3)).astype(np.uint8)
    distance = (np.arange(11)[:, None] - 5) ** 2 + (np.arange(11)[None, :] - 5) ** 2
    weight = np.exp(-distance / 4.5)
    weight /= weight.sum()
    found = []
    for channel in range(3):
        x, y = a[..., channel].astype(float), b[..., channel].astype(float)
        mx, my = (weight * x).sum(), (weight * y).sum()
        vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
        cov = (weight * (x - mx) * (y - my)).sum()
        top = (2 * mx * my + 6.5025) * (2 * cov + 58.5225)
        found.append(top / ((mx**2 + my**2 + 6.5025) * (vx + vy + 58.5225)))
    ours = metrics.ssim(torch.from_numpy(a), torch.from_numpy(b))
    assert ours == pytest.approx(np.mean(found), rel=1e-9)


def test_relative_error() -> None:
    assert metrics.relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == 0.2


# Model


def test_weights_come_back_as_bfloat16_rounds_them(
    model: DiffusionTransformer, weights: Path
) -> None:
    loaded, vocabulary, resolution = load_model(weights)
    assert vocabulary.words == VOCABULARY.words
    assert resolution == 16
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float()), name


def test_shipped_weights_fit_their_limits() -> None:
    model, vocabulary, resolution = load_model()
    path = Path(sys.modules[DiffusionTransformer.__module__].__file__ or "").parent
    assert (path / "weights.safetensors").stat().st_size <= 16e6
    assert "Permission is hereby granted" in (path / "LICENSES").read_text()
    assert resolution == 128
    assert model.config.vocabulary == len(vocabulary)
    for prompt in command.DEFAULT_PROMPTS:
        assert vocabulary.encode_prompt(prompt, model.config.word_slots)[1] == []


def test_wrong_picture_shape_is_refused(model: DiffusionTransformer) -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \[batch, 3, .*got \[1, 3, 15, 16\]"):
        model(torch.zeros(1, 3, 15, 16), torch.ones(1), words_of("cat"))


def test_each_patch_comes_out_where_it_went_in(model: DiffusionTransformer) -> None:
    """With blocks that pass tokens through and an invertible patch map, the picture returns."""
    x = flow.noise([0], 16)
    model.modulation.weight.zero_()
    model.modulation.bias.zero_()  # gates 0: every block is the identity; no scale, no shift
    torch.nn.init.orthogonal_(model.patch_in.weight)
    model.patch_in.bias.zero_()
    model.patch_out.weight.copy_(model.patch_in.weight.t())
    model.patch_out.bias.zero_()
    out = model(x, torch.ones(1), words_of("cat"))
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  # the final norm scales each patch on its own
    ours = out.unfold(2, 2, 2).unfold(3, 2, 2)
    inner = (patches * ours).sum((1, 4, 5))
    norms = patches.square().sum((1, 4, 5)).sqrt() * ours.square().sum((1, 4, 5)).sqrt()
    assert (inner / norms).min() > 0.8


# Sampling


def test_all_columns_and_units_equal_dense_step_after_step(model: DiffusionTransformer) -> None:
    chosen = sampler(model, columns=1.0, units=1.0, steps=5)
    dense = chosen.dense("dense", "dense", 5)
    exact = [x.double() for x in dense_states_in_float64(chosen, 5)]
    floor = [metrics.relative_error(x, y) for x, y in zip(dense.states, exact, strict=True)]
    for rest in ("merge", "difference", "none"):
        sparse = chosen.sparse("sparse", "sparse", chosen.settings.config(rest=rest))
        assert sparse.full == [True, False, False, True, False]
        assert sparse.columns_kept == 1
        assert sparse.units_kept == 1
        assert sparse.mass_kept == pytest.approx(1, abs=1e-5)
        for x, y, limit in zip(sparse.states, exact, floor, strict=True):
            assert metrics.relative_error(x, y) <= 3 * limit + 1e-6


def dense_states_in_float64(chosen: Sampler, steps: int) -> list[torch.Tensor]:
    chosen = Sampler(chosen.model.double(), chosen.settings, chosen.words)
    states = chosen.dense("exact", "exact", steps).states
    chosen.model.float()
    return states


def test_a_seed_gives_the_same_pictures_again_and_another_one_does_not(
    model: DiffusionTransformer,
) -> None:
    def draw(seed: int) -> torch.Tensor:
        chosen = sampler(model, seed=seed)
        config = chosen.settings.config(random_fraction=1.0)
        return chosen.sparse("random", "random", config).states[-1]

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_kept_shares_are_those_asked_for(model: DiffusionTransformer) -> None:
    chosen = sampler(model)
    run = chosen.sparse("sparse", "sparse", chosen.settings.config())
    image, text = 16 * 16, 4
    assert run.columns_kept == pytest.approx((image / 4 + text) / (image + text))
    assert run.units_kept == pytest.approx(0.25)
    assert run.mass_kept is not None
    assert 0.25 < run.mass_kept < 1


def test_full_steps_only_equal_dense(model: DiffusionTransformer) -> None:
    chosen = sampler(model, full_every=1)
    dense = chosen.dense("dense", "dense", 4)
    sparse = chosen.sparse("sparse", "sparse", chosen.settings.config())
    assert metrics.relative_error(sparse.states[-1], dense.states[-1]) < 1e-4


def test_sparse_steps_differ_from_dense_and_no_rest_is_worse(model: DiffusionTransformer) -> None:
    # Many small steps: only then is the last full step a good guess.
    chosen = sampler(model, steps=24)
    dense = chosen.dense("dense", "dense", 24)
    error = {
        rest: metrics.relative_error(
            chosen.sparse(rest, rest, chosen.settings.config(rest=rest)).states[-1],
            dense.states[-1],
        )
        for rest in ("merge", "none")
    }
    assert 1e-5 < error["merge"] < error["none"]


def test_the_model_itself_stays_dense(model: DiffusionTransformer) -> None:
    before = {name: type(module) for name, module in model.named_modules()}
    copy, _ = make_sparse(model, settings().config(), 32)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert model.order is None
    assert copy.order is not None


def test_progress_announces_every_step_it_takes(model: DiffusionTransformer) -> None:
    announced: list[int] = []
    titles: list[str] = []
    chosen = settings(resolution=16)
    draw_all(
        Sampler(
            model,
            chosen,
            words_of(*chosen.prompts),
            announce=announced.append,
            advance=titles.append,
        )
    )
    assert announced[0] == 5 * chosen.steps
    assert sum(announced) == len(titles)
    assert titles[0] == "dense"


def test_equal_time_steps() -> None:
    state = [torch.zeros(1, 3, 16, 16)] * 4
    dense = run_of("dense", [100.0] * 4, state)
    assert equal_time_steps(dense, run_of("sparse", [100.0, 30, 30, 30], state)) == 2
    assert equal_time_steps(dense, run_of("sparse", [1.0] * 4, state)) == 1
    assert equal_time_steps(dense, run_of("sparse", [900.0] * 4, state)) == 4
