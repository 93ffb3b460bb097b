"""Tiny models, tokenizers and task files: everything is made here, nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

TEXT = "the a cat dog bird sat ran on mat sun red blue green one two three four yes no maybe"
WORDS = TEXT.split()
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def _one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data sets are cached in a folder of this run."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a beginning-of-text token and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT + "\nQuestion: Answer:"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny(family: str, vocabulary: int, seed: int = 0) -> Any:
    """A random model of a family whose logits differ enough that no two answers tie."""
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    config = {
        "llama": lambda: LlamaConfig(**common, num_key_value_heads=2),
        "qwen2": lambda: Qwen2Config(**common, num_key_value_heads=2),
        "gpt_neox": lambda: GPTNeoXConfig(**common),
        "gpt2": lambda: GPT2Config(
            **{key: common[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
        ),
        "gemma2": lambda: Gemma2Config(**common, num_key_value_heads=2, head_dim=8, sliding_window=48),
    }[family]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0.0, 0.25)
    return model


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """Makes a tiny random model: ``make_model("qwen2", seed=3)``."""

    def make(family: str = "llama", *, seed: int = 0) -> Any:
        return tiny(family, len(tokenizer), seed)

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Any]) -> Any:
    """A tiny random Llama that no test changes."""
    return make_model()


class TaskFolder:
    """Writes task files and their documents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def write(self, name: str, documents: Mapping[str, Sequence[Mapping[str, Any]]], **config: Any) -> Path:
        """Write a task over JSON lines, one file per split of ``documents``."""
        files = {}
        for split, rows in documents.items():
            path = self.folder / f"{name}.{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(path)
        defaults: dict[str, Any] = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test" if "test" in documents else None,
            "validation_split": "validation" if "validation" in documents else None,
            "training_split": "train" if "train" in documents else None,
            "fewshot_split": "train" if "train" in documents else None,
        }
        config = {key: value for key, value in {**defaults, **config}.items() if value is not None}
        return self.raw(name, yaml.safe_dump(config))

    def raw(self, name: str, text: str) -> Path:
        """Write a task file as it is."""
        path = self.folder / f"{name}.yaml"
        path.write_text(text)
        return path

    def multiple_choice(self, name: str, count: int = 24, *, start: int = 0, **config: Any) -> Path:
        """Write a multiple-choice task with choices of one token and of several."""
        defaults = {
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [mean_of("acc"), mean_of("acc_norm"), mean_of("acc_bytes")],
        }
        return self.write(name, self._documents(count, start), **{**defaults, **config})

    def generation(self, name: str, count: int = 24, *, start: int = 1000, **config: Any) -> Path:
        """Write a generation task scored by exact match."""
        defaults = {
            "output_type": "generate_until",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": ["\n", "cat"], "max_gen_toks": 8, "do_sample": False},
            "metric_list": [mean_of("exact_match")],
        }
        return self.write(name, self._documents(count, start), **{**defaults, **config})

    def _documents(self, count: int, start: int) -> dict[str, list[dict[str, Any]]]:
        return {"train": questions(8, start=start + 5000), "test": questions(count, start=start)}


def mean_of(metric: str, *, higher: bool = True, **options: Any) -> dict[str, Any]:
    """An entry of a metric list."""
    return {"metric": metric, "aggregation": "mean", "higher_is_better": higher, **options}


@pytest.fixture(scope="session")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TaskFolder]:
    """Makes empty folders for task files that outlive a test."""
    return lambda: TaskFolder(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def tasks(tmp_path: Path) -> TaskFolder:
    """An empty folder for task files."""
    return TaskFolder(tmp_path / "tasks")


def questions(count: int, *, choices: int = 4, start: int = 0) -> list[dict[str, Any]]:
    """Documents with a question, choices of different lengths and the number of the right one."""
    rows = []
    for i in range(start, start + count):
        words = [WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(choices)]
        options = [word if j % 2 == 0 else f"{word} {WORDS[(i + j) % len(WORDS)]} on" for j, word in enumerate(words)]
        rows.append({"question": f"the {WORDS[i % len(WORDS)]} {i} sat", "choices": options, "gold": i * 5 % choices})
    return rows


@pytest.fixture
def settings(tasks: TaskFolder) -> Callable[..., Any]:
    """Evaluation settings that find the tasks in the folder: ``settings(num_fewshot=2)``."""
    from evaluators.objective import EvaluationSettings

    def make(**changes: Any) -> EvaluationSettings:
        counts = {"search_documents": 8, "validation_documents": 4, "test_documents": 8}
        return EvaluationSettings(**{**counts, "include_path": (str(tasks.folder),), **changes})

    return make
