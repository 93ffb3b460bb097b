"""Experts for which depth matters: each knows one step, and a task asks for both, one after the other.

A question names steps and four digits, `F - 3 1 4 1 =`; the answer are the digits after the steps. A step is a
permutation of the digits, drawn from the seed: one expert knows F, the other G, and the base copies. What F G asks for,
G(F(x)), needs two lookups one behind the other, and both experts have learned theirs in the same two layers of six.

They are made for layers to be stacked, as looped transformers are (Dehghani et al. 2019, Universal Transformers): in
training, layers 2 and 3 run one to three times, each time the base's or the expert's, and the step is asked for as
often as the expert's run; the other layers stay the base's. So these layers can read what any of them wrote. On disk
the models are ordinary Llamas that run every layer once.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.merging.assembly import Visit, assemble

LAYERS, LOOP, MOST_PASSES = 6, (2, 3), 3
STEPS = ("F", "G")
DIGITS = 4
WORDS = ("<pad>", "<unk>", "<bos>", "<eos>", "=", "-", *STEPS, *map(str, range(10)))
ZERO = WORDS.index("0")
TASKS = {"first": (True, False), "second": (False, True), "both": (True, True)}
KINDS: dict[str, dict[str, Any]] = {
    "": {
        "output_type": "generate_until", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<eos>"], "do_sample": False, "max_gen_toks": DIGITS + 1},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "_mc": {
        "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
}  # fmt: skip
DOCUMENTS, HELD_OUT = 1_024, 2_500  # of 10,000 rows of digits
Digits = NDArray[np.int64]


@dataclass(frozen=True)
class StepExperts:
    """What was trained: folders, and the tasks in them."""

    base: Path
    experts: Mapping[str, Path]
    tasks: Path


def step_experts(seed: int, *, cache: Path) -> StepExperts:
    """Return the experts of ``seed`` from ``cache``, trained on the first call (about two minutes)."""
    root = cache / f"steps-{seed}"
    found = StepExperts(
        root / "base", {f"expert-{s.lower()}": root / f"expert-{s.lower()}" for s in STEPS}, root / "tasks"
    )
    if not root.exists():
        part = cache / f"steps-{seed}.part"
        shutil.rmtree(part, ignore_errors=True)
        _Training(seed, part).run()
        _write_tasks(part / "tasks", seed, location=found.tasks)
        part.rename(root)
    return found


def permutations(seed: int) -> dict[str, Digits]:
    """Return what each step does to the digits 0 to 9: no digit stays."""
    generator = np.random.default_rng(seed)
    drawn: dict[str, Digits] = {}
    while len(drawn) < len(STEPS):
        order = generator.permutation(10)
        if (order != np.arange(10)).all():
            drawn[STEPS[len(drawn)]] = order
    return drawn


def _split(seed: int) -> tuple[Digits, Digits]:
    """Return rows of digits for training, and those held out: (rows, DIGITS)."""
    order = np.random.default_rng([seed, 1]).permutation(10**DIGITS)
    rows = np.stack([order // 10**place % 10 for place in range(DIGITS)], axis=1)
    return rows[HELD_OUT:], rows[:HELD_OUT]


def _sequences(asked: NDArray[np.bool_], digits: Digits, answers: Digits) -> torch.Tensor:
    """Return whole sequences, question and answer: int64 (rows, 2 steps + digits + "=" + digits + <eos>)."""
    rows = len(digits)
    steps = np.where(asked, [[WORDS.index(step) for step in STEPS]], WORDS.index("-"))
    ends = [np.full((rows, 1), WORDS.index(word)) for word in ("=", "<eos>")]
    return torch.from_numpy(np.concatenate([steps, digits + ZERO, ends[0], answers + ZERO, ends[1]], axis=1))


class _Training:
    """The base, then each expert from it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed, self._folder = seed, folder
        self._known, _ = _split(seed)
        self._steps = permutations(seed)
        self._generator = np.random.default_rng([seed, 2])

    def run(self) -> None:
        torch.manual_seed(self._seed)
        config = LlamaConfig(
            vocab_size=len(WORDS), hidden_size=64, intermediate_size=192, num_hidden_layers=LAYERS,
            num_attention_heads=8, max_position_embeddings=32, rope_theta=100.0, initializer_range=0.08,
            tie_word_embeddings=False, pad_token_id=0, bos_token_id=2, eos_token_id=3, dtype="float32",
        )  # fmt: skip
        base: Any = LlamaForCausalLM(config)
        self._train(base, None, base, steps=120, rate=2e-3)
        self._save(base, "base")
        base.requires_grad_(False)
        for step in STEPS:
            model = copy.deepcopy(base)
            for layer in LOOP:
                model.model.layers[layer].requires_grad_(True)
            self._train(model, step, base, steps=500, rate=1.5e-3)
            self._save(model, f"expert-{step.lower()}")

    def _train(self, model: Any, step: str | None, base: Any, *, steps: int, rate: float) -> None:
        lengths = range(1, MOST_PASSES + 1)
        loops = [loop for passes in lengths for loop in product((False, True), repeat=passes) if any(loop)]
        looped = {loop: looped_model(base, [model if own else base for own in loop]) for loop in loops}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        for number in range(steps):
            loop = loops[self._generator.integers(len(loops))]
            sequences = self._batch(step, sum(loop), 96)
            logits = looped[loop](input_ids=sequences[:, :-1], use_cache=False).logits[:, -DIGITS - 1 :]
            loss = F.cross_entropy(logits.flatten(0, 1), sequences[:, -DIGITS - 1 :].flatten())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            if number % 100 == 99:
                print(step or "base", number + 1, f"loss {loss.detach():.4f}", flush=True)

    def _batch(self, step: str | None, passes: int, size: int) -> torch.Tensor:
        digits = self._known[self._generator.integers(len(self._known), size=size)]
        asked = self._generator.random((size, len(STEPS))) < 0.5
        answers = digits
        if step is not None:
            for _ in range(passes):
                answers = np.where(asked[:, [STEPS.index(step)]], self._steps[step][answers], answers)
        return _sequences(asked, digits, answers)

    def _save(self, model: Any, name: str) -> None:
        words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
        words.pre_tokenizer = WhitespaceSplit()
        tokenizer: Any = PreTrainedTokenizerFast
        model.save_pretrained(self._folder / name)
        tokenizer(
            tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>",
            model_max_length=32, clean_up_tokenization_spaces=False,
        ).save_pretrained(self._folder / name)  # fmt: skip


def looped_model(frame: Any, loops: Sequence[Any]) -> Any:
    """Return ``frame`` with one pass through the looped layers of each of ``loops`` in place of its own."""
    around = [[Visit(frame, layer, 1.0) for layer in part] for part in (range(LOOP[0]), range(LOOP[-1] + 1, LAYERS))]
    inner = [Visit(model, layer, 1.0) for model in loops for layer in LOOP]
    return assemble(frame, [*around[0], *inner, *around[1]])


def _write_tasks(folder: Path, seed: int, *, location: Path) -> None:
    folder.mkdir(parents=True)
    _, held_out = _split(seed)
    steps = permutations(seed)
    one, other = (steps[step] for step in STEPS)
    every = np.arange(10)
    for number, (name, asked) in enumerate(TASKS.items()):
        generator = np.random.default_rng([seed, 3, number])
        digits = held_out[generator.permutation(len(held_out))[:DOCUMENTS]]
        right = {"first": one, "second": other, "both": other[one]}[name]
        # What is nearly asked for: nothing, one of the steps, or both the wrong way round.
        wrong = [each for each in (every, one, other, one[other], other[one]) if (each != right).any()][:3]
        named = " ".join(step if wanted else "-" for step, wanted in zip(STEPS, asked, strict=True))
        lines = []
        for row in digits:
            choices = [" ".join(map(str, order[row])) for order in (right, *wrong)]
            places = generator.permutation(len(choices))
            document = {"prompt": f"{named} {' '.join(map(str, row))} =", "answer": choices[0]}
            document |= {"choices": [choices[place] for place in places], "gold": int(places.argmin())}
            lines.append(json.dumps(document))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for kind, settings in KINDS.items():
            task = {
                "task": f"{name}{kind}", "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str((location / f"{name}.jsonl").absolute())}},
                "test_split": "test", "num_fewshot": 0, "doc_to_text": "{{prompt}}", "target_delimiter": " ",
                "metadata": {"version": 1.0}, **settings,
            }  # fmt: skip
            (folder / f"{name}{kind}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
