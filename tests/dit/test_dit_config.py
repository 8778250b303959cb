"""Settings, schedules, and the skipping of whole steps."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from dit_support import randn  # noqa: E402

from chipmunk_kernels import dit  # noqa: E402


def test_schedules():
    every, listed = dit.Schedule(every=4), dit.Schedule(steps=(1, 3))
    assert [s for s in range(10) if every.is_full(s)] == [0, 4, 8]
    assert [s for s in range(10) if listed.is_full(s)] == [0, 1, 3]


def test_progress_counts_by_branch():
    progress = dit.Progress()
    seen = []
    for branch in ("a", "b", "a", "a", "b"):
        progress.begin(branch)
        seen.append(progress.step)
    assert seen == [0, 0, 1, 2, 1]
    progress.begin("b", step=7, image=(2, 9))
    assert (progress.branch, progress.step, progress.image) == ("b", 7, (2, 9))
    progress.begin("b")
    assert (progress.step, progress.image) == (8, None)
    progress.reset()
    progress.begin("b")
    assert (progress.step, progress.generation) == (0, 1)


def test_presets_keep_the_published_numbers():
    flux, hunyuan, wan = (
        dit.ChipmunkConfig.flux_dev(),
        dit.ChipmunkConfig.hunyuan_video(),
        dit.ChipmunkConfig.wan_2_1(),
    )
    assert flux.attention.kept_keys(4096) == 640
    assert flux.mlp.kept_units(12288) == 3712
    assert hunyuan.attention.kept_keys(118800) == 7168
    assert wan.attention.kept_keys(75600) == 8320
    assert wan.attention.kept_keys(32760) == 3584
    assert [s for s in range(50) if wan.is_full(s)] == [0, 1, 10, 40]
    assert len(hunyuan.step_cache.skip_steps) == 25
    assert (flux.token_order, hunyuan.token_order) == ("patches", "voxels")


def test_kept_numbers():
    assert dit.AttentionConfig(fraction=0.001).kept_keys(50) == 1
    assert dit.AttentionConfig(fraction=0.3, round_to=8).kept_keys(100) == 32
    assert dit.AttentionConfig(fraction=1.0, round_to=64).kept_keys(100) == 100
    assert dit.AttentionConfig(count=500).kept_keys(100) == 100
    assert dit.AttentionConfig(mass=0.9, max_fraction=0.5).kept_keys(100) == 50
    assert dit.MlpConfig(fraction=0.25).kept_units(40) == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dit.Schedule(),
            "Schedule: expected exactly one of every and steps, got every=None and steps=None",
        ),
        (lambda: dit.Schedule(every=0), "Schedule: every: expected at least 1, got 0"),
        (
            lambda: dit.Schedule(steps=(3, -1)),
            "Schedule: steps: expected none below 0, got (3, -1)",
        ),
        (
            lambda: dit.Progress().begin(step=-1),
            "Progress.begin: step: expected at least 0, got -1",
        ),
        (
            lambda: dit.Progress().begin(image=(5, 5)),
            "Progress.begin: image: expected 0 <= start < stop, got (5, 5)",
        ),
        (
            lambda: dit.AttentionConfig(),
            "AttentionConfig: expected exactly one of fraction, count and mass, got none",
        ),
        (
            lambda: dit.AttentionConfig(fraction=0.1, mass=0.5),
            "AttentionConfig: expected exactly one of fraction, count and mass, got fraction, mass",
        ),
        (
            lambda: dit.AttentionConfig(fraction=1.5),
            "AttentionConfig: fraction: expected more than 0 and at most 1, got 1.5",
        ),
        (
            lambda: dit.AttentionConfig(count=0),
            "AttentionConfig: count: expected at least 1, got 0",
        ),
        (
            lambda: dit.AttentionConfig(count=1, random_fraction=-0.1),
            "AttentionConfig: random_fraction: expected 0 to 1, got -0.1",
        ),
        (
            lambda: dit.AttentionConfig(count=1, rest="sum"),
            'AttentionConfig: rest: expected "merge", "difference" or "none", got \'sum\'',
        ),
        (
            lambda: dit.AttentionConfig(count=1, query_group=100),
            "AttentionConfig: query_group: expected 64, 128, 192 or 256, got 100",
        ),
        (
            lambda: dit.MlpConfig(),
            "MlpConfig: expected exactly one of fraction and count, "
            "got fraction=None and count=None",
        ),
        (
            lambda: dit.MlpConfig(fraction=0.5, round_to=0),
            "MlpConfig: round_to: expected at least 1, got 0",
        ),
        (
            lambda: dit.StepCacheConfig(),
            "StepCacheConfig: expected skip_steps, threshold or both, got neither",
        ),
        (
            lambda: dit.StepCacheConfig(skip_steps=(-2,)),
            "StepCacheConfig: skip_steps: expected none below 0, got (-2,)",
        ),
        (
            lambda: dit.StepCacheConfig(threshold=0),
            "StepCacheConfig: threshold: expected more than 0, got 0.0",
        ),
        (
            lambda: dit.StepCacheConfig(threshold=math.nan),
            "StepCacheConfig: threshold: expected more than 0, got nan",
        ),
        (
            lambda: dit.ChipmunkConfig(dense_layers=-1),
            "ChipmunkConfig: dense_layers: expected at least 0, got -1",
        ),
        (
            lambda: dit.ChipmunkConfig(token_order="blocks"),
            'ChipmunkConfig: token_order: expected "voxels", "patches" or None, got \'blocks\'',
        ),
        (
            lambda: dit.ChipmunkConfig(
                mlp=dit.MlpConfig(count=1), step_cache=dit.StepCacheConfig(skip_steps=(3, 10))
            ),
            "ChipmunkConfig: step_cache: skip_steps: step 10 is a full step of attention or MLP "
            "and cannot be skipped",
        ),
    ],
)
def test_setting_messages(make, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make()
    assert str(error.value) == message


def run_step_cache(config, inputs, branches=(None,)):
    """The outputs per branch, and which steps ran."""
    progress = dit.Progress()
    cache = dit.StepCache(config, progress)
    ran, outs = {b: [] for b in branches}, {b: [] for b in branches}
    for step, x in enumerate(inputs):
        for number, branch in enumerate(branches):
            progress.begin(branch)

            def blocks(x, step=step, number=number, branch=branch):
                ran[branch].append(step)
                return x + 1 + step + 100 * number

            outs[branch].append(cache(x, blocks))
    return outs, ran


def test_listed_steps_are_skipped():
    config = dit.ChipmunkConfig(step_cache=dit.StepCacheConfig(skip_steps=(2, 3, 5)))
    inputs = [randn(2, 3, seed=i) for i in range(7)]
    outs, ran = run_step_cache(config, inputs, ("cond", "uncond"))
    assert ran == {"cond": [0, 1, 4, 6], "uncond": [0, 1, 4, 6]}
    added = [1, 2, 2, 2, 5, 5, 7]
    for number, branch in enumerate(("cond", "uncond")):
        for x, out, change in zip(inputs, outs[branch], added, strict=True):
            torch.testing.assert_close(out, x + change + 100 * number)


def test_steps_are_skipped_below_the_threshold():
    config = dit.ChipmunkConfig(
        attention=dit.AttentionConfig(count=1, full_steps=dit.Schedule(every=6)),
        step_cache=dit.StepCacheConfig(threshold=0.25),
    )
    inputs = [torch.full((3,), 1.1**i) for i in range(9)]  # each step changes by 0.1
    _, ran = run_step_cache(config, inputs)
    assert ran[None] == [0, 3, 6]  # 0.1, 0.2, 0.3 since step 0; step 6 is full
    _, ran = run_step_cache(config, [torch.full((3,), 1.3**i) for i in range(4)])
    assert ran[None] == [0, 1, 2, 3]


def test_another_shape_is_not_skipped():
    config = dit.ChipmunkConfig(step_cache=dit.StepCacheConfig(skip_steps=(1, 2), threshold=9.0))
    outs, ran = run_step_cache(config, [randn(2, 3), randn(2, 4), randn(2, 4)])
    assert ran[None] == [0, 1]
    assert outs[None][2].shape == (2, 4)


def test_nothing_is_skipped_without_a_step_cache():
    _, ran = run_step_cache(dit.ChipmunkConfig(), [randn(2, 3)] * 3)
    assert ran[None] == [0, 1, 2]
    cache = dit.StepCache(dit.ChipmunkConfig(), progress := dit.Progress())
    progress.begin()
    with pytest.raises(RuntimeError, match="no step has been run"):
        cache.skipped(randn(2, 3))


def test_reset_of_the_step_cache():
    config = dit.ChipmunkConfig(step_cache=dit.StepCacheConfig(skip_steps=(1,)))
    progress = dit.Progress()
    cache = dit.StepCache(config, progress)
    progress.begin()
    cache(randn(2), lambda x: x)
    cache.reset()
    progress.begin()
    assert not cache.skips(randn(2))
