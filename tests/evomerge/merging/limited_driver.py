"""Merges models that are larger than a limit, in a process of its own, and prints the most private memory it took.

python limited_driver.py FOLDER LIMIT_MIB
"""

import json
import sys
import threading
from pathlib import Path

import torch

from evomerge.merging.export import write_checkpoint
from evomerge.merging.safetensors_writer import Shard, info_of, write_shard
from search_spaces.operators import Breadcrumbs, DareTies, Linear, LocalizeStitch, Operator, Ties, TsvM
from search_spaces.recipe import Block, Blocks, Recipe, Source

W, D = (0.4, 0.3), (0.5, 0.7)
OPERATORS: dict[str, Operator] = {
    "linear": Linear(weights=(0.2, *W)),
    "ties": Ties(weights=W, densities=D),
    "dare_ties": DareTies(weights=W, densities=D),
    "breadcrumbs": Breadcrumbs(weights=W, densities=D, gammas=(0.01, 0.02)),
    "localize_stitch-of-the-model": LocalizeStitch(weights=W, densities=(0.1, 0.2), scope="model"),
    "tsv_m": TsvM(weights=W),
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


def main(root: Path, limit_mib: int) -> None:
    for size, (words, hidden) in {"tiny": (50, 8), "large": (240_000, 128)}.items():
        for number in range(3):
            save_model(root / size / str(number), words=words, hidden=hidden, noise=0.001 * number)
    found = {}
    for name, operator in OPERATORS.items():
        for size in ("tiny", "large"):  # the first compiles and loads what the operator needs
            sources = tuple(Source(path=str(root / size / str(number))) for number in range(3))
            body = Blocks(blocks=(Block(layers=(0, 2), operator=operator),))
            recipe = Recipe(sources=sources, dtype="float32", body=body)
            with Peak() as peak:
                write_checkpoint(recipe, root / f"{name}-{size}", memory_limit=limit_mib << 20)
        found[name] = peak.most
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
