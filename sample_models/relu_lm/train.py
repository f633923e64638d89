"""Train a small decoder-only language model with ReLU feed-forward layers and export it to ONNX.

Network (Vaswani et al., arXiv 1706.03762, pre-norm): token and learned position embeddings, blocks
of causal attention and Linear-ReLU-Linear, a last LayerNorm, a head that shares the embedding's
weights, ArgMax.  The loss is plain cross entropy: nothing favours zeros (--sparsity would add an L1
penalty on the ReLU outputs).  Exported twice:

* relu_lm.onnx: 'tokens' int64 [batch, time] -> 'next' int64 [batch, time], time at most 64;
* relu_lm_step.onnx: 'token' int64 [batch, 1], 'past_keys' and 'past_values' float32
  [layers, batch, heads, past, head_dim], past at most 63 and possibly 0
  -> 'next' int64 [batch, 1], 'keys' and 'values', the caches grown by one.

Data: see text_data.py.  Another Python version has other text, hence another model.

    python sample_models/relu_lm/train.py        (about 7 minutes on one core)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common
from text_data import CONTEXT, encode, read_texts, train_tokenizer, windows, write_sequences


class Linear(nn.Module):
    """x W + b with W stored as [inputs, outputs], so that it exports as MatMul and Add alone."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Block(nn.Module):
    """Pre-norm causal attention and a ReLU feed-forward part."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.project = (Linear(width, width) for _ in range(4))
        self.up, self.down = Linear(width, hidden), Linear(hidden, width)
        with torch.no_grad():
            for part in (self.project, self.down):
                part.weight /= (2 * layers) ** 0.5

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x, mask, past_key=None, past_value=None):
        """Return the new state, this block's keys and values, and the ReLU output."""
        y = self.norm1(x)
        query, key, value = self.split(self.query(y)), self.split(self.key(y)), self.split(self.value(y))
        if past_key is not None:
            key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores + mask
        y = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(x.shape)
        x = x + self.project(y)
        active = functional.relu(self.up(self.norm2(x)))
        return x + self.down(active), key, value, active


class LanguageModel(nn.Module):
    """The network up to its logits."""

    def __init__(self, tokens: int, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(tokens, width) * 0.05)
        self.position = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -1e9).triu(1))

    def embed(self, tokens: torch.Tensor, start) -> torch.Tensor:
        return self.embedding[tokens] + self.position[start : start + tokens.shape[1]]

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) @ self.embedding.transpose(0, 1)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the logits and the ReLU outputs."""
        time_steps = tokens.shape[1]
        x, actives = self.embed(tokens, 0), []
        for block in self.blocks:
            x, _, _, active = block(x, self.mask[:time_steps, :time_steps])
            actives.append(active)
        return self.head(x), actives


class Sequence(nn.Module):
    """The whole-sequence form, as exported."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens)[0].argmax(-1)


class Step(nn.Module):
    """One decode step with a key and value cache, as exported."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: torch.Tensor, past_keys: torch.Tensor, past_values: torch.Tensor):
        x, keys, values = self.model.embed(token, past_keys.shape[3]), [], []
        for index, block in enumerate(self.model.blocks):
            x, key, value, _ = block(x, None, past_keys[index], past_values[index])
            keys.append(key)
            values.append(value)
        return self.model.head(x).argmax(-1), torch.stack(keys), torch.stack(values)


def train(model: LanguageModel, stream: np.ndarray, options: argparse.Namespace) -> None:
    """Train on random windows of the stream: AdamW, linear warm-up and cosine rate, L1 on the ReLUs."""
    rng = np.random.default_rng(options.seed)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        return min((step + 1) / 50, 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / options.steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    start, running = time.perf_counter(), 0.0
    model.train()
    for step in range(options.steps):
        first = rng.integers(0, len(stream) - CONTEXT, options.batch)
        windows = torch.from_numpy(stream[first[:, None] + np.arange(CONTEXT + 1)])
        logits, actives = model(windows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        penalty = sum(active.mean() for active in actives)
        optimiser.zero_grad()
        (loss + options.sparsity * penalty).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        running += loss.item()
        if (step + 1) % 50 == 0:
            zeros = float(torch.stack([(active == 0).float().mean() for active in actives]).mean())
            seconds = time.perf_counter() - start
            print(
                f"step {step + 1}/{options.steps}  loss {running / 50:.3f}  zeros {zeros:.2f}  {seconds:.0f} s",
                flush=True,
            )
            running = 0.0
    model.eval()


def export(model: LanguageModel, folder: Path) -> None:
    """Write both ONNX files."""
    settings = {"dynamo": False, "opset_version": 17, "do_constant_folding": False}
    path = folder / "relu_lm.onnx"
    torch.onnx.export(
        Sequence(model).eval(), (torch.zeros(2, 5, dtype=torch.int64),), str(path),
        input_names=["tokens"], output_names=["next"],
        dynamic_axes={"tokens": {0: "batch", 1: "time"}, "next": {0: "batch", 1: "time"}}, **settings,
    )  # fmt: skip
    common.finish_onnx(
        path, "Language model with ReLU feed-forward layers; output is the likeliest next token."
    )

    path = folder / "relu_lm_step.onnx"
    heads, size = model.blocks[0].heads, model.position.shape[1] // model.blocks[0].heads
    past = torch.zeros(len(model.blocks), 2, heads, 3, size)
    torch.onnx.export(
        Step(model).eval(), (torch.zeros(2, 1, dtype=torch.int64), past, past.clone()), str(path),
        input_names=["token", "past_keys", "past_values"], output_names=["next", "keys", "values"],
        dynamic_axes={
            "token": {0: "batch"}, "past_keys": {1: "batch", 3: "past"}, "past_values": {1: "batch", 3: "past"},
            "next": {0: "batch"}, "keys": {1: "batch", 3: "total"}, "values": {1: "batch", 3: "total"},
        }, **settings,
    )  # fmt: skip
    common.finish_onnx(path, "One decode step of relu_lm with a key and value cache.")


def decode(path: Path, tokens: np.ndarray, shape: tuple[int, int, int]):
    """Feed tokens one at a time; yield the inputs and the answer of each step."""
    layers, heads, size = shape
    runner = common.session(path)
    keys = values = np.zeros((layers, len(tokens), heads, 0, size), np.float32)
    for column in range(tokens.shape[1]):
        inputs = {"token": tokens[:, column : column + 1], "past_keys": keys, "past_values": values}
        answer, keys, values = runner.run(None, inputs)
        yield inputs, answer


def write_steps(
    path: Path, tokens: np.ndarray, labels: np.ndarray, shape: tuple[int, int, int], folder: Path
) -> None:
    """Write decode steps with past 0, 2, .. 24, five sequences a file.

    The caches are rounded to half precision (and kept as float32), which halves the files.
    """
    common.fresh_directory(folder)
    for column, (inputs, _) in enumerate(decode(path, tokens[:, :25], shape)):
        if column % 2 == 0:
            rounded = {
                name: value if name == "token" else value.astype(np.float16).astype(np.float32)
                for name, value in inputs.items()
            }
            np.savez_compressed(
                folder / f"past{column:02d}.npz", **rounded, label=labels[:, column : column + 1]
            )


def check_decode(folder: Path, tokens: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Print how often the step form answers as the whole-sequence form, given the tokens and on its own."""
    whole = common.session(folder / "relu_lm.onnx")
    step = np.concatenate([answer for _, answer in decode(folder / "relu_lm_step.onnx", tokens, shape)], 1)
    same = (step == whole.run(None, {"tokens": tokens})[0]).mean()

    layers, heads, size = shape
    prompt, runner = tokens[:, :8], common.session(folder / "relu_lm_step.onnx")
    by_step, by_whole = prompt, prompt
    keys = values = np.zeros((layers, len(tokens), heads, 0, size), np.float32)
    for column in range(CONTEXT - 1):
        inputs = {"token": by_step[:, column : column + 1], "past_keys": keys, "past_values": values}
        answer, keys, values = runner.run(None, inputs)
        if column + 1 == by_step.shape[1]:
            by_step = np.concatenate([by_step, answer], 1)
    while by_whole.shape[1] < CONTEXT:
        by_whole = np.concatenate([by_whole, whole.run(None, {"tokens": by_whole})[0][:, -1:]], 1)
    print(f"step form against whole-sequence form: {same:.4%} of answers equal; greedy texts equal:", end=" ")
    print(bool((by_step == by_whole).all()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32, help="sequences of 64 tokens a step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument(
        "--sparsity", type=float, default=0.0, help="weight of the L1 penalty on the ReLU outputs"
    )
    parser.add_argument("--tokens", type=int, default=6144, help="size of the vocabulary")
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=1280)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)

    texts = read_texts()
    start = time.perf_counter()
    merges = train_tokenizer(texts["train"].values(), options.tokens)
    (options.out / "tokenizer.json").write_text(json.dumps({"merges": merges}, separators=(",", ":")) + "\n")
    streams = {name: encode(part.values(), merges) for name, part in texts.items()}
    sizes = {name: len(stream) for name, stream in streams.items()}
    print(f"tokens {sizes}, tokenizer {time.perf_counter() - start:.0f} s", flush=True)

    model = LanguageModel(options.tokens, options.width, options.heads, options.hidden, options.layers)
    train(model, streams["train"], options)
    export(model, options.out)

    shape = (options.layers, options.heads, options.width // options.heads)
    for name, count in (("calibration", 1000), ("test", 500)):
        tokens, labels, files = windows(streams[name], count, options.seed)
        write_sequences(tokens, labels, np.array(list(texts[name]))[files], options.out / name)
        few = np.linspace(0, len(tokens) - 1, 5).astype(int)
        folder = options.out / f"{name}_step"
        write_steps(options.out / "relu_lm_step.onnx", tokens[few], labels[few], shape, folder)
        for file, data in (("relu_lm.onnx", options.out / name), ("relu_lm_step.onnx", folder)):
            share, total = common.accuracy(options.out / file, data)
            print(f"{file} {name}: next-token accuracy {share:.4f} on {total} tokens")
    check_decode(options.out, tokens[:50], shape)
    common.describe(options.out / "relu_lm.onnx", {"tokens": tokens[:20]}, divide=20 * CONTEXT)


if __name__ == "__main__":
    main()
