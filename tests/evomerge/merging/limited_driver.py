"""Merges models that are larger than a limit, in a process of its own, and prints the most private memory it took.

What cannot be done within the limit is done within what the refusal says that it needs.

python limited_driver.py FOLDER LIMIT_MIB
"""

import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from evomerge.errors import NotEnoughRoom
from evomerge.merging.export import write_checkpoint
from evomerge.merging.safetensors_writer import Shard, info_of, write_shard
from search_spaces.operators import Breadcrumbs, DareTies, Linear, LocalizeStitch, Operator, Ties, TsvM
from search_spaces.recipe import Block, Blocks, Hop, PathBody, Recipe, Source

W, D = (0.4, 0.3), (0.5, 0.7)
EXPERTS, ADAPTERS, ADAPTED_WORDS = ("1", "2"), ("1", "adapter"), ("1", "adapted_words")
OPERATORS: dict[str, Operator] = {
    "linear": Linear(weights=(0.2, *W)),
    "ties": Ties(weights=W, densities=D),
    "dare_ties": DareTies(weights=W, densities=D),
    "breadcrumbs": Breadcrumbs(weights=W, densities=D, gammas=(0.01, 0.02)),
    "localize_stitch-of-the-model": LocalizeStitch(weights=W, densities=(0.1, 0.2), scope="model"),
    "tsv_m": TsvM(weights=W),
}


def blocks(operator: Operator, length: float | None = None) -> Blocks:
    return Blocks(blocks=(Block(layers=(0, 2), operator=operator, length=length),))


BODIES: dict[str, tuple[tuple[str, ...], Blocks | PathBody]] = {  # and the experts
    **{name: (EXPERTS, blocks(operator)) for name, operator in OPERATORS.items()},
    "ties-of-a-length": (EXPERTS, blocks(OPERATORS["ties"], length=0.5)),
    "adapter": (ADAPTERS, blocks(OPERATORS["ties"])),
    "adapter-of-the-embedding": (ADAPTED_WORDS, blocks(OPERATORS["ties"])),
    "path": (
        EXPERTS,
        PathBody(slots=(0, 1), hops=tuple(Hop(slot=s, layer=n) for s in (0, 1) for n in (0, 1))),
    ),
}


def save_model(folder: Path, *, words: int, hidden: int, noise: float) -> None:
    """Write a Llama of two layers with a large embedding; tensor by tensor."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": words, "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    square, wide = (hidden, hidden), (2 * hidden, hidden)
    shapes = {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,)}
    for layer in range(2):
        place = f"model.layers.{layer}."
        shapes |= {f"{place}self_attn.{part}_proj.weight": square for part in "qkvo"}
        shapes |= {f"{place}mlp.{part}_proj.weight": wide for part in ("up", "gate")}
        shapes |= {f"{place}mlp.down_proj.weight": wide[::-1], f"{place}input_layernorm.weight": (hidden,)}
        shapes |= {f"{place}post_attention_layernorm.weight": (hidden,)}

    def merge(name: str):
        def fill(out: torch.Tensor, first: int) -> None:
            for start in range(0, len(out), 1000):  # a thousand numbers, again and again
                out[start : start + 1000] = values[: len(out) - start]
            out[:: 997 + first % 7].add_(noise)

        return fill

    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.02 + noise * torch.randn(1000)
    tensors = {name: info_of(shape, torch.float32) for name, shape in shapes.items()}
    write_shard(Shard("model.safetensors", tensors), folder, merge=merge)


def save_adapter(folder: Path, base: Path, hidden: int, *, words: int = 0) -> None:
    """Write a LoRA adapter of rank 2 for the queries, or for the embedding of so many ``words``."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(1)
    of_words = "model.embed_tokens.lora_embedding_"
    shapes = {f"{of_words}A": (2, words), f"{of_words}B": (hidden, 2)}
    if not words:
        queries = [f"model.layers.{layer}.self_attn.q_proj.lora_" for layer in range(2)]
        shapes = {
            f"{q}{side}.weight": shape for q in queries for side, shape in (("A", (2, hidden)), ("B", (hidden, 2)))
        }
    factors = {
        f"base_model.model.{name}": torch.randn(shape, generator=random) * 0.02 for name, shape in shapes.items()
    }
    save_file(factors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 4,
        "target_modules": ["embed_tokens" if words else "q_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


class Peak:
    """The most private memory, in bytes above the start, while the context lasts."""

    def __enter__(self) -> "Peak":
        self._start, self.most, self._done = private_bytes(), 0, threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._done.wait(0.0005):
            self.most = max(self.most, private_bytes() - self._start)


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def within(limit: int, write: Callable[[int], Path]) -> tuple[int, int]:
    """Call ``write`` with the limit, or with what it needs: return that and the most memory that it took, in bytes."""
    try:
        with Peak() as peak:
            write(limit)
    except NotEnoughRoom as error:
        limit = int(re.search(r"needs (\d+) MiB", str(error))[1]) << 20
        with Peak() as peak:
            write(limit)
    return limit, peak.most


def main(root: Path, limit_mib: int) -> None:
    for size, (words, hidden) in {"tiny": (50, 8), "large": (240_000, 128)}.items():
        for number in range(3):
            save_model(root / size / str(number), words=words, hidden=hidden, noise=0.001 * number)
        save_adapter(root / size / "adapter", root / size / "0", hidden)
        save_adapter(root / size / "adapted_words", root / size / "0", hidden, words=words)
    found = {}
    for name, (experts, body) in BODIES.items():
        for size in ("tiny", "large"):  # the first compiles and loads what the operator needs
            sources = tuple(Source(path=str(root / size / source)) for source in ("0", *experts))
            recipe, to = Recipe(sources=sources, dtype="float32", body=body), root / f"{name}-{size}"
            found[name] = within(
                limit_mib << 20, lambda most, recipe=recipe, to=to: write_checkpoint(recipe, to, memory_limit=most)
            )
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
