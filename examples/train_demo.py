"""Trains the small diffusion transformer of `python -m chipmunk_kernels demo`.

    python examples/train_demo.py --seconds 500 --out build/demo

Rectified flow on rising resolutions. The run is a pure function of its options, its data and the
step number (every draw is seeded by the step), so a run killed at any time and started again with
the same options goes on from its last checkpoint with the batches it would have seen. With
--seconds the schedule follows training time instead of steps and ends when the time is used.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
# The demo's model needs torch alone: import it beside the package, whose extension may not be
# built on the training machine.
sys.path.insert(0, str(ROOT / "python" / "chipmunk_kernels"))

import demo_data  # noqa: E402
from demo import flow  # noqa: E402
from demo.files import atomic_path  # noqa: E402
from demo.model import DiffusionTransformer, ModelConfig, save_model  # noqa: E402
from demo.words import PAD, Vocabulary  # noqa: E402

PROMPTS = [
    "red apple",
    "cat face",
    "soccer ball",
    "slice of pizza",
    "rocket",
    "sunflower",
    "grinning face",
    "blue heart",
    "octopus",
    "automobile",
    "guitar",
    "hamburger",
    "house with garden",
    "crown",
    "frog face",
    "birthday cake",
]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of training at one resolution; `share` is its part of the whole schedule."""

    resolution: int
    batch: int
    share: float

    @staticmethod
    def parse(text: str) -> list[Stage]:
        stages = [
            Stage(int(r), int(b), float(s))
            for r, b, s in (part.split(":") for part in text.split(","))
        ]
        total = sum(stage.share for stage in stages)
        return [dataclasses.replace(stage, share=stage.share / total) for stage in stages]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        help="folder or .tgz of a package, repeatable; default: npm pack",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=ROOT / "build" / "demo_data",
        help="where npm pack puts the packages",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for all outputs")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=float, help="training time, checkpoints included")
    length.add_argument("--steps", type=int, help="training steps")
    parser.add_argument(
        "--stages", default="32:512:0.2,64:256:0.35,128:64:0.45", help="resolution:batch:share, ..."
    )
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=float, default=0.02, help="share of the schedule")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the schedule")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--caption-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="train on this many pictures only")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--checkpoint-every", type=float, default=60, help="seconds")
    parser.add_argument("--fresh", action="store_true", help="ignore an existing checkpoint")
    parser.add_argument("--sample-steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    return parser.parse_args()


class Trainer:
    """Everything that changes during training, and the step that changes it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.stages = Stage.parse(args.stages)
        self.device = args.device
        size = max(stage.resolution for stage in self.stages)
        data = demo_data.load(
            args.data or demo_data.fetch(args.cache), size, args.limit, args.workers
        )
        pixels = torch.from_numpy(data.pixels).permute(0, 3, 1, 2)
        self.pixels = {
            stage.resolution: demo_data.shrink(pixels, stage.resolution).to(self.device)
            for stage in self.stages
        }
        self.weights = torch.tensor([e.weight for e in data.entries], device=self.device)

        torch.manual_seed(args.seed)
        slots = ModelConfig(vocabulary=1).word_slots
        self.captions = demo_data.Captions(data.entries, slots, self.device)
        config = ModelConfig(
            vocabulary=len(self.captions.vocabulary),
            width=args.width,
            depth=args.depth,
            heads=args.heads,
        )
        self.model = DiffusionTransformer(config).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        # Muon for the matrices inside the blocks, AdamW for everything else, one learning rate: at
        # equal steps the loss is lower than with AdamW alone.
        inner = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        if args.optimizer == "adamw":
            inner = []
        taken = {id(p) for p in inner}
        decayed = [p for p in self.model.parameters() if p.ndim > 1 and id(p) not in taken]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": args.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=args.lr,
            betas=(0.9, 0.98),
            fused=self.device.startswith("cuda"),
        )
        self.optimizers: list[torch.optim.Optimizer] = [adamw]
        if inner:
            self.optimizers.append(
                torch.optim.Muon(
                    inner,
                    lr=args.lr,
                    weight_decay=args.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if not args.no_compile:
            for block in self.model.blocks:  # one graph per resolution, shared by all blocks
                block.compile(dynamic=False)
        self.generator = torch.Generator(self.device)
        self.step = 0
        self.stage_step = 0
        self.stage = 0
        self.elapsed = 0.0
        # What a checkpoint must agree with to be continued.
        self.identity = json.dumps(
            {
                "config": dataclasses.asdict(config),
                "stages": args.stages,
                "seed": args.seed,
                "pictures": len(data.entries),
                "words": _hash(self.captions.vocabulary),
            }
        )

    @property
    def progress(self) -> float:
        """How much of the schedule is done, 0 to 1."""
        if self.args.steps is not None:
            return self.step / self.args.steps
        return self.elapsed / self.args.seconds

    def learning_rate(self, progress: float) -> float:
        """Linear warm-up, constant, linear decay to zero."""
        up = progress / self.args.warmup if self.args.warmup else 1.0
        down = (1 - progress) / self.args.decay if self.args.decay else 1.0
        return self.args.lr * max(min(up + 1e-2, down, 1.0), 0.0)

    def _enter_stage(self) -> Stage:
        ends = itertools.accumulate(stage.share for stage in self.stages)
        index = min(sum(self.progress >= end for end in ends), len(self.stages) - 1)
        if index != self.stage:
            self.stage, self.stage_step = index, 0
        return self.stages[self.stage]

    def train_step(self) -> tuple[Stage, Tensor]:
        """One optimizer step. Returns its stage and its loss, a scalar still on the device."""
        stage = self._enter_stage()
        rate = self.learning_rate(self.progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.generator.manual_seed(self.args.seed * 1_000_003 + self.step)
        draw = {"device": self.device, "generator": self.generator}
        index = torch.multinomial(
            self.weights, stage.batch, replacement=True, generator=self.generator
        )
        x = self.pixels[stage.resolution][index].float() / 127.5 - 1
        words = self.captions.batch(index, self.args.caption_dropout, self.generator)
        t = flow.shift_time(torch.randn(stage.batch, **draw).sigmoid(), stage.resolution)
        noise = torch.randn(x.shape, **draw)
        mixed = x + t[:, None, None, None] * (noise - x)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            velocity = self.model(mixed, t, words)
        loss = F.mse_loss(velocity.float(), noise - x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        # Young averages forget fast: a stage's picture scale is new to the model.
        decay = min(self.args.ema, (1 + self.stage_step) / (10 + self.stage_step))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.model.parameters()), 1 - decay
        )
        self.step += 1
        self.stage_step += 1
        return stage, loss.detach()

    def save_checkpoint(self) -> None:
        state = {
            "identity": self.identity,
            "step": self.step,
            "stage": self.stage,
            "stage_step": self.stage_step,
            "elapsed": self.elapsed,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with atomic_path(self.args.out / "checkpoint.pt") as path:
            torch.save(state, path)

    def load_checkpoint(self) -> bool:
        path = self.args.out / "checkpoint.pt"
        if self.args.fresh or not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["identity"] != self.identity:
            raise SystemExit(
                f"train_demo: {path}: expected a checkpoint of this run {self.identity}, got "
                f"{state['identity']}; give another --out or --fresh"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.stage_step = state["step"], state["stage_step"]
        self.stage, self.elapsed = state["stage"], state["elapsed"]
        return True

    def save_results(self, name: str, resolution: int) -> None:
        """Averaged weights and a grid of sample pictures."""
        notes = {
            "steps": str(self.step),
            "stages": self.args.stages,
            "pictures": str(len(self.weights)),
            "data": f"{demo_data.PICTURES} {demo_data.NAMES}",
            "license": "MIT (see LICENSES beside this file)",
        }
        vocabulary = self.captions.vocabulary
        save_model(
            self.args.out / f"{name}.safetensors", self.average, vocabulary, resolution, notes
        )
        known = [p for p in PROMPTS if any(w in vocabulary.words for w in p.split())]
        slots = self.captions.slots
        ids = [vocabulary.ids(p.split(), slots) for p in known] or [[PAD] * slots]
        words = torch.tensor(ids, device=self.device)
        start = flow.noise(list(range(len(ids))), resolution, self.device)
        steps = flow.integrate(
            self.average,
            self.average,
            start,
            words,
            steps=self.args.sample_steps,
            guidance=self.args.guidance,
        )
        with torch.no_grad(), torch.autocast(self.device.split(":")[0], torch.bfloat16):
            *_, x = steps
        pixels = flow.to_pixels(x)
        columns = min(8, len(pixels))
        grid = Image.new(
            "RGB", (columns * resolution, math.ceil(len(pixels) / columns) * resolution)
        )
        for i, picture in enumerate(pixels.numpy()):
            place = (i % columns * resolution, i // columns * resolution)
            grid.paste(Image.fromarray(picture), place)
        with atomic_path(self.args.out / f"{name}.png") as path:
            grid.save(path)


def _hash(vocabulary: Vocabulary) -> str:
    return hashlib.sha256(" ".join(vocabulary.words).encode()).hexdigest()[:16]


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    begin = time.perf_counter()
    trainer = Trainer(args)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"{len(trainer.weights)} pictures, {len(trainer.captions.vocabulary)} words, "
        f"{parameters / 1e6:.2f} M parameters, ready after {time.perf_counter() - begin:.1f} s"
    )
    if trainer.load_checkpoint():
        print(f"continuing at step {trainer.step}, {trainer.elapsed:.0f} s trained")
    log = (args.out / "log.csv").open("a")
    bar = tqdm(
        total=1000,
        unit="‰",
        initial=min(int(trainer.progress * 1000), 1000),
        mininterval=2,
        bar_format="{l_bar}{bar:20}| {elapsed}<{remaining}{postfix}",
    )
    clock, saved = time.perf_counter(), time.perf_counter()
    smooth, stage = None, trainer.stages[0]
    losses: list[Tensor] = []
    while trainer.progress < 1:
        before = trainer.stage
        if trainer.step and trainer._enter_stage() and trainer.stage != before:
            trainer.save_results(f"after_{stage.resolution}", stage.resolution)
        stage, loss = trainer.train_step()
        losses.append(loss)
        if trainer.step % 10 == 0 or trainer.stage_step <= 2:  # reading the loss waits for the GPU
            mean = torch.stack(losses).mean().item()
            losses.clear()
            smooth = (
                mean if smooth is None or trainer.stage_step <= 10 else (0.9 * smooth + 0.1 * mean)
            )
            if not math.isfinite(mean):
                raise SystemExit(f"train_demo: the loss became {mean} at step {trainer.step}")
            log.write(
                f"{trainer.step},{stage.resolution},{trainer.elapsed:.1f},{mean:.5f},"
                f"{trainer.learning_rate(trainer.progress):.2e}\n"
            )
            log.flush()
            bar.set_postfix_str(
                f"step {trainer.step}, {stage.resolution} px, loss {smooth:.4f}", refresh=False
            )
            bar.update(min(int(trainer.progress * 1000), 1000) - bar.n)
        now = time.perf_counter()
        trainer.elapsed += now - clock
        clock = now
        if now - saved > args.checkpoint_every:
            trainer.save_checkpoint()
            saved = time.perf_counter()
    bar.close()
    log.close()
    trainer.save_checkpoint()
    trainer.save_results("weights", trainer.stages[-1].resolution)
    print(
        f"{trainer.step} steps in {trainer.elapsed:.0f} s; "
        f"whole run {time.perf_counter() - begin:.0f} s; results in {args.out}"
    )


if __name__ == "__main__":
    main()
