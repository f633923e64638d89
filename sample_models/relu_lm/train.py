"""Trains and exports ``relu_lm``: a small decoder language model with ReLU feed-forward layers.

Vaswani et al., Attention Is All You Need (2017), as a decoder: three blocks of causal attention
and a ReLU feed-forward layer of eight times the width, each behind an RMSNorm; the embedding is
the head's weight, too. Text: the documentation that every Python carries, that is the help topics
of ``pydoc`` and the docstrings of the standard library. Written twice, as the whole sequence and as
one decode step with a cache of keys and values. About 20 minutes on one core (OMP_NUM_THREADS=1):

    python sample_models/relu_lm/train.py
"""

from __future__ import annotations

import argparse
import ast
import math
import sysconfig
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import onnx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
VOCABULARY, WIDTH, HIDDEN, LAYERS, HEADS, LENGTH = 8192, 192, 1536, 3, 4, 64
HEAD = WIDTH // HEADS


# --- text ------------------------------------------------------------------------------------


def documents() -> dict[str, list[str]]:
    """Documents by split. The split of a file or topic depends on its name alone."""
    from pydoc_data.topics import topics

    found = {f"topic/{name}": text for name, text in topics.items()}
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if name.startswith(("site-packages", "test/", "idlelib", "lib2to3", "ensurepip")) or "/test" in name:
            continue
        text = docstrings(path)
        if len(text) > 200:
            found[name] = text
    splits: dict[str, list[str]] = {"train": [], "calibration": [], "test": []}
    for name in sorted(found):
        place = zlib.crc32(name.encode()) % 20
        splits["test" if place == 0 else "calibration" if place == 1 else "train"].append(found[name])
    return splits


def docstrings(path: Path) -> str:
    """All docstrings of a source file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(text for text in texts if text)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level byte-pair encoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All documents in one row of tokens, an end token after each."""
    return np.concatenate([[*item.ids, 0] for item in tokenizer.encode_batch(texts)]).astype(np.int64)


# --- the model -------------------------------------------------------------------------------


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    """Causal attention and a ReLU feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None, past: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the new x and the keys and values, ``[batch, heads, time, head]``."""
        h = self.norm1(x)
        heads = [f(h).reshape(h.shape[0], -1, HEADS, HEAD).transpose(1, 2) for f in (self.query, self.key, self.value)]
        query, key, value = heads
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        scores = query @ key.transpose(2, 3) / math.sqrt(HEAD)
        if mask is not None:
            scores = scores + mask
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(h.shape[0], -1, WIDTH)
        x = x + self.out(mixed)
        return x + self.down(F.relu(self.up(self.norm2(x)))), key, value


class ReluLM(nn.Module):
    """Scores of the next token, ``[batch, time, vocabulary]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.05)
        self.position = nn.Parameter(torch.randn(2 * LENGTH, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = Norm()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(tokens.shape[1])
        mask = torch.where(steps[:, None] >= steps[None, :], 0.0, -1e9)
        x = F.embedding(tokens, self.embedding) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x, _, _ = block(x, mask, None)
        return self.norm(x) @ self.embedding.T


class Next(nn.Module):
    """The exported form for whole sequences: the next token at every position."""

    def __init__(self, model: ReluLM):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens).argmax(dim=-1)


class Step(nn.Module):
    """The exported form for decoding: one token, with the cache of those before it."""

    def __init__(self, model: ReluLM):
        super().__init__()
        self.model = model

    def forward(
        self, token: torch.Tensor, past_keys: torch.Tensor, past_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        place = past_keys.shape[3]
        x = F.embedding(token, self.model.embedding) + self.model.position[place : place + 1]
        keys, values = [], []
        for i, block in enumerate(self.model.blocks):
            x, key, value = block(x, None, (past_keys[i], past_values[i]))
            keys.append(key)
            values.append(value)
        scores = self.model.norm(x) @ self.model.embedding.T
        return scores.argmax(dim=-1), torch.stack(keys), torch.stack(values)


def train(tokens: np.ndarray, steps: int, batch: int, seed: int) -> ReluLM:
    """AdamW with warm-up and a cosine rate."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = ReluLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    start, total = time.time(), 0.0
    for step in range(steps):
        at = rng.integers(0, len(tokens) - LENGTH - 1, batch)
        part = torch.from_numpy(np.stack([tokens[a : a + LENGTH + 1] for a in at]))
        optimizer.zero_grad(set_to_none=True)
        scores = model(part[:, :-1])
        loss = F.cross_entropy(scores.reshape(-1, VOCABULARY), part[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {total / 50:.3f}, {time.time() - start:.0f} s", flush=True)
            total = 0.0
    return model.eval()


# --- files -----------------------------------------------------------------------------------


def export(model: ReluLM) -> None:
    """Writes both ONNX files; the head's weight stays the embedding, behind a Transpose."""
    common = {"opset_version": 17, "do_constant_folding": False, "dynamo": False}
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    path = HERE / "relu_lm.onnx"
    axes = {"tokens": {0: "batch", 1: "time"}, "next": {0: "batch", 1: "time"}}
    torch.onnx.export(
        Next(model), (tokens,), str(path), input_names=["tokens"], output_names=["next"], dynamic_axes=axes, **common
    )
    cache = torch.zeros(LAYERS, 2, HEADS, 5, HEAD)
    axes = {"token": {0: "batch"}, "next": {0: "batch"}}
    axes |= {name: {1: "batch", 3: "past"} for name in ("past_keys", "past_values")}
    axes |= {name: {1: "batch", 3: "total"} for name in ("keys", "values")}
    torch.onnx.export(
        Step(model),
        (torch.zeros(2, 1, dtype=torch.int64), cache, cache.clone()),
        str(HERE / "relu_lm_step.onnx"),
        input_names=["token", "past_keys", "past_values"],
        output_names=["next", "keys", "values"],
        dynamic_axes=axes,
        **common,
    )
    for path in (HERE / "relu_lm.onnx", HERE / "relu_lm_step.onnx"):
        onnx.checker.check_model(onnx.load(path), full_check=True)
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")


def sequences(tokens: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``[count, LENGTH]`` tokens, evenly spread, not overlapping, and the tokens that really follow."""
    at = np.linspace(0, len(tokens) - LENGTH - 1, count).astype(int)
    assert count < 2 or np.diff(at).min() >= LENGTH
    parts = np.stack([tokens[a : a + LENGTH + 1] for a in at])
    return parts[:, :-1], parts[:, 1:]


def save(name: str, tokens: np.ndarray, count: int, steps: int, model: ReluLM) -> None:
    """Writes ``name/`` with sequences, and ``name_step/`` with single decode steps and their caches."""
    parts, label = sequences(tokens, count)
    folder, step_folder = HERE / name, HERE / f"{name}_step"
    folder.mkdir(exist_ok=True)
    step_folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "tokens.npz", tokens=parts, label=label)
    step = Step(model)
    batch = 8
    with torch.no_grad():
        for i in range(steps):
            rows = torch.from_numpy(parts[i * batch : (i + 1) * batch])
            past = 3 + i * 5 % 16
            cache = [torch.zeros(LAYERS, batch, HEADS, 0, HEAD)] * 2
            for place in range(past):
                _, *cache = step(rows[:, place : place + 1], *cache)
            np.savez_compressed(
                step_folder / f"{i:02d}.npz",
                token=rows[:, past : past + 1].numpy(),
                past_keys=cache[0].numpy(),
                past_values=cache[1].numpy(),
                label=label[i * batch : (i + 1) * batch, past : past + 1],
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = documents()
    tokenizer = train_tokenizer(texts["train"])
    tokens = {split: encode(tokenizer, parts) for split, parts in texts.items()}
    print({split: len(row) for split, row in tokens.items()}, tokenizer.get_vocab_size(), flush=True)
    tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)
    model = train(tokens["train"], args.steps, args.batch, args.seed)
    export(model)
    save("calibration", tokens["calibration"], 620, 14, model)
    save("test", tokens["test"], 420, 14, model)
    parts, label = sequences(tokens["test"], 420)
    with torch.no_grad():
        hits = [(model(torch.from_numpy(p)).argmax(-1).numpy() == y).mean() for p, y in zip(np.split(parts, 20), np.split(label, 20))]
    print(f"test accuracy of the next token {np.mean(hits):.4f}")


if __name__ == "__main__":
    main()
