"""What merging the experts of a mixture costs, step by step: tiny mixtures trained on the foundry's language.

Question: what do weight matching, weights by frequency and a fitted router each contribute to M-SMoE, and what if the
experts of a group are dropped instead of merged? Models of four layers with eight experts, two a token, are trained
from scratch (`qwen3_moe`, `mixtral`), compressed on 256 questions of the training side, and measured on 3,584 held-out
questions: whole answers right, and the divergence of the next token's distribution from the original's (nats).

Run: `.venv/bin/python benchmarks/compression.py` (about eight CPU minutes). Writes results/compression.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import save
from torch.nn import functional as F

from evomerge.foundry.language import (
    IGNORED,
    LANGUAGES,
    PROMPT_LENGTH,
    SKILLS,
    TARGET_LENGTH,
    TOKEN_ID,
    practice_batch,
    question_batch,
    questions,
)
from evomerge.foundry.settings import FoundrySettings
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compressed import write_compressed
from evomerge.merging.compression import Compression, Layer, plan
from evomerge.merging.routing import Group, Routing
from search_spaces.calibration import Calibration, Sample

EXPERTS, LEFT, STEPS, RATE, BALANCE = 8, (7, 6, 5, 4, 3, 2), 800, 3e-3, 0.01
SETTINGS = FoundrySettings()
QUESTIONS = 256  # of each skill in each language


def config_of(kind: str) -> Any:
    """Return the config of a tiny mixture."""
    sizes = {
        "vocab_size": len(TOKEN_ID), "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 8, "max_position_embeddings": 64, "initializer_range": 0.12, "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "tie_word_embeddings": False,
        "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "intermediate_size": 64,
    }  # fmt: skip
    if kind == "qwen3_moe":
        more = {"moe_intermediate_size": 64, "head_dim": 8, "num_experts": EXPERTS, "norm_topk_prob": True}
        return transformers.Qwen3MoeConfig(**sizes, **more)
    return transformers.MixtralConfig(**sizes, num_local_experts=EXPERTS)


def train(kind: str, seed: int, folder: Path) -> None:
    """Write a mixture that has learned every skill."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config_of(kind))
    random, optimizer = np.random.default_rng(seed), torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    for step in range(STEPS):
        rate = RATE * min(1.0, (step + 1) / 20, max(0.05, (STEPS - step) / (0.3 * STEPS)))
        optimizer.param_groups[0].update(lr=rate, weight_decay=0.1)
        batch = practice_batch(random, SETTINGS.clean.practice, SETTINGS.held_out_share, 128)
        out = model(torch.from_numpy(batch.tokens), output_router_logits=True)
        targets = torch.from_numpy(batch.targets).flatten()
        loss = F.cross_entropy(out.logits[:, -TARGET_LENGTH:].flatten(0, 1), targets, ignore_index=IGNORED)
        (loss + BALANCE * out.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def prompts() -> Calibration:
    """Return 256 questions of the training side with their answers."""
    batch = practice_batch(np.random.default_rng(5), SETTINGS.clean.practice, SETTINGS.held_out_share, 256)
    samples = tuple(Sample(tokens=tuple(tokens), answer=PROMPT_LENGTH) for tokens in batch.tokens.tolist())
    return Calibration(samples=samples, experts=(tuple(range(len(samples))),))


def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and targets of held-out questions."""
    found = []
    for skill in SKILLS:
        pool = questions(skill, SETTINGS.held_out_share, held_out=True)
        chosen = pool[np.random.default_rng(0).permutation(len(pool))[:QUESTIONS]]
        found += [question_batch(skill, chosen, language) for language in LANGUAGES]
    tokens, targets = (torch.from_numpy(np.concatenate(part)) for part in zip(*found, strict=True))
    return tokens, targets


@torch.no_grad()
def likelihoods(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Return log-likelihoods of the tokens of answers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    logits = [model(part).logits[:, -TARGET_LENGTH:] for part in tokens.split(512)]
    return torch.cat(logits).log_softmax(-1)


def dominant_rows(model: Checkpoint, layer: Layer) -> Layer:
    """Keep the dominant expert's row of the router instead of the fitted one."""
    places = [group.dominant for group in layer.groups]
    return replace(layer, routers=tuple(model.tensor(name)[places] for name in layer.mixture.routers))


def mean_rows(model: Checkpoint, layer: Layer) -> Layer:
    """Average the rows of the router as the experts are averaged."""
    weights = torch.from_numpy(layer.weights)
    rows = [
        torch.stack([weights[list(g.members)] @ model.tensor(name)[list(g.members)].double() for g in layer.groups])
        for name in layer.mixture.routers
    ]
    return replace(layer, routers=tuple(rows))


def unordered(_: Checkpoint, layer: Layer) -> Layer:
    """Leave the units where they are."""
    return replace(layer, orders={})


def equal(_: Checkpoint, layer: Layer) -> Layer:
    """Weigh all members alike."""
    return replace(layer, routing=Routing(np.ones(EXPERTS), layer.routing.products))


def dropped(_: Checkpoint, layer: Layer) -> Layer:
    """Drop all members but the dominant one; the router is fitted for the groups all the same."""
    return replace(layer, groups=tuple(Group(g.dominant, (g.dominant,)) for g in layer.groups))


VARIANTS: dict[str, Callable[[Checkpoint, Layer], Layer]] = {
    "as built": lambda _, layer: layer,
    "dominant router rows": dominant_rows,
    "mean router rows": mean_rows,
    "no weight matching": unordered,
    "equal weights": equal,
    "members dropped": dropped,
    "members dropped, dominant router rows": lambda model, layer: dropped(model, dominant_rows(model, layer)),
}


def measure(kind: str, seed: int, home: Path) -> dict[str, Any]:
    """Return accuracy and divergence of every variant for every number of experts left."""
    folder = home / f"{kind}-{seed}"
    train(kind, seed, folder)
    model, calibration, (tokens, targets) = Checkpoint.open(folder), prompts(), held_out()
    original, counted = likelihoods(folder, tokens), targets != IGNORED

    def accuracy(found: torch.Tensor) -> float:
        return float(((found.argmax(-1) == targets) | ~counted).all(-1).double().mean())

    rows: dict[str, Any] = {"original": accuracy(original)}
    for left in LEFT:
        planned = plan(model, model, calibration, left, progress=None)
        for name, change in VARIANTS.items():
            layers = tuple(change(model, layer) for layer in planned.layers)
            to = home / f"{kind}-{seed}-{left}-{name.replace(' ', '-').replace(',', '')}"
            write_compressed(model, Compression(planned.model, planned.reference, calibration, left, layers), to)
            found = likelihoods(to, tokens)
            divergence = (original.exp() * (original - found)).sum(-1)[counted].mean()
            rows.setdefault(name, {})[left] = {"accuracy": accuracy(found), "divergence": float(divergence)}
    return rows


def main() -> None:
    """Measure and print the table of docs/operators.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as home:
        models = {f"{k} {s}": measure(k, s, Path(home)) for k in ("qwen3_moe", "mixtral") for s in seeds}
    save("compression", {"models": models})
    print("| variant | " + " | ".join(f"{left} left" for left in LEFT) + " |")
    print("|---|" + "---|" * len(LEFT))
    for name in VARIANTS:
        cells = []
        for left in LEFT:
            own = [rows[name][left] for rows in models.values()]
            means = [np.mean([each[key] for each in own]) for key in ("accuracy", "divergence")]
            cells.append(f"{means[0]:.3f} / {means[1]:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
