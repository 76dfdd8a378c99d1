"""The training loop of one model: mixture, schedule, checkpoints, held-out loss."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trio.batches import Packer, Stream, text_stream, turn_stream
from trio.clinical_turns import clinical_turns
from trio.corpus import load
from trio.model import Llama, Shape
from trio.optim import make_optimizers
from trio.presets import Plan, Preset
from trio.vocab import Vocab


@dataclass
class Clock:
    """How much of a budget is gone: tokens or minutes, whichever is nearer to its end.

    A slow machine therefore still decays its learning rate to zero in time.
    """

    tokens_total: int
    minutes: float
    tokens: int = 0
    spent: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Seconds of training, over all resumed runs."""
        return self.spent + time.monotonic() - self.since

    def progress(self) -> float:
        """From 0 to 1."""
        return max(self.tokens / self.tokens_total, self.seconds() / (60 * self.minutes))


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def make_streams(
    data: Path, preset: Preset, plan: Plan, vocab: Vocab, seed: int
) -> tuple[dict[str, Stream], dict[str, Stream]]:
    """Training streams and held-out text, by the names that the phases use."""
    train: dict[str, Stream] = {}
    held: dict[str, Stream] = {}
    for source in dict.fromkeys((*plan.text, *plan.turns)):
        limits = {**preset.characters, **plan.characters}
        documents = load(data, source, limits.get(source, 0), seed)
        kept = [d for d in documents if not d.held_out]
        if source in plan.text:
            train[source] = text_stream([d.text for d in kept], vocab)
            held[source] = text_stream([d.text for d in documents if d.held_out][:24], vocab)
        if source in plan.turns:
            turns = clinical_turns(kept, seed)
            name = f"turns:{source}"
            train[name] = turn_stream(turns, vocab, plan.shape.context, seed)
    return train, {name: stream for name, stream in held.items() if len(stream)}


@torch.no_grad()
def held_out_bits(model: Llama, streams: Mapping[str, Stream], vocab: Vocab) -> dict[str, float]:
    """Bits per byte of each source's held-out documents, first context window of each."""
    lengths, device = np.array(vocab.byte_lengths()), model.token_embd.device
    bits: dict[str, float] = {}
    for name, stream in streams.items():
        nats, size = 0.0, 0
        for i in range(len(stream)):
            ids = stream.unit(i)[0][: model.shape.context + 1].astype(np.int64)
            row = torch.from_numpy(ids)[None].to(device)
            nats += float(model.losses(row[:, :-1], row[:, 1:]).sum())
            size += int(lengths[ids[1:]].sum())
        bits[name] = nats / math.log(2) / max(size, 1)
    return bits


def load_model(path: Path, dtype: torch.dtype = torch.bfloat16) -> Llama:
    """The model of a checkpoint."""
    saved = torch.load(path, map_location="cpu", weights_only=False)
    model = Llama(Shape(**saved["shape"]), dtype)
    model.load_state_dict(saved["model"])
    return model


class Trainer:
    """One model's training; `run` goes to the end of the budget."""

    def __init__(
        self, role: str, plan: Plan, vocab: Vocab, work: Path, *, device: str, compiled: bool
    ) -> None:
        """Make or resume the model in `work`/ROLE.pt."""
        self.role, self.plan, self.vocab, self.path = role, plan, vocab, work / f"{role}.pt"
        self.device = pick_device(device)
        self.model = Llama(plan.shape).to(self.device)
        if plan.start_from:
            parent = torch.load(work / f"{plan.start_from}.pt", weights_only=False)
            self.model.load_state_dict(parent["model"])
        self.optimizers = make_optimizers(self.model, plan.lr, plan.embed_lr)
        self.losses = torch.compile(self.model.losses) if compiled else self.model.losses

    def _lr_factor(self, progress: float) -> float:
        return min(progress / self.plan.warmup, (1 - progress) / (1 - self.plan.warmup), 1.0)

    def _step(self, packer: Packer, progress: float) -> float:
        phase = next((p for p in self.plan.phases if progress < p.until), self.plan.phases[-1])
        rows = [packer.row(phase.shares) for _ in range(self.plan.rows)]
        ids = torch.from_numpy(np.stack([r[0] for r in rows])).to(self.device)
        weights = torch.from_numpy(np.stack([r[1] for r in rows])).to(self.device)[:, 1:]
        nats = self.losses(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss = (nats * weights.flatten()).sum() / weights.sum()
        loss.backward()
        for optimizer, lr in zip(self.optimizers, (self.plan.lr, self.plan.embed_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * max(self._lr_factor(progress), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    def _save(self, packer: Packer, clock: Clock, step: int) -> None:
        state = {
            "shape": self.plan.shape.to_dict(),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "packer": packer.state(),
            "tokens": clock.tokens,
            "seconds": clock.seconds(),
            "step": step,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        os.replace(self.path.with_suffix(".tmp"), self.path)

    def _resume(self, packer: Packer, clock: Clock) -> int:
        saved: dict[str, Any] = torch.load(self.path, map_location=self.device, weights_only=False)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        packer.restore(saved["packer"])
        clock.tokens, clock.spent = saved["tokens"], saved["seconds"]
        return int(saved["step"])

    def run(
        self, streams: tuple[dict[str, Stream], dict[str, Stream]], minutes: float, seed: int
    ) -> None:
        """Train until the budget is gone; a checkpoint every four minutes and at the end."""
        packer = Packer(streams[0], self.plan.shape.context, seed)
        clock = Clock(self.plan.tokens, minutes)
        step = self._resume(packer, clock) if self.path.exists() else 0
        saved_at, mean, first = time.monotonic(), 0.0, True
        while (progress := clock.progress()) < 1:
            loss = self._step(packer, progress)
            clock.tokens += self.plan.rows * self.plan.shape.context
            step += 1
            if first:
                clock.since, first = time.monotonic(), False  # compiling is not training
            mean = loss if step == 1 or not mean else 0.95 * mean + 0.05 * loss
            if step % 25 == 1:
                self._log(
                    step=step,
                    loss=round(mean, 4),
                    tokens=clock.tokens,
                    seconds=round(clock.seconds(), 1),
                    progress=round(progress, 4),
                )
            if time.monotonic() - saved_at > 240:
                self._save(packer, clock, step)
                saved_at = time.monotonic()
        self._save(packer, clock, step)
        self._log(done=step, tokens=clock.tokens, seconds=round(clock.seconds()))
        bits = held_out_bits(self.model, streams[1], self.vocab)
        self._log(held_out_bits_per_byte={k: round(v, 4) for k, v in bits.items()})
        self._log(epochs=packer.epochs)

    def _log(self, **values: object) -> None:
        line = json.dumps({"role": self.role, **values})
        print(line, flush=True)
        with self.path.with_suffix(".log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
