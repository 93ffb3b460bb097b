"""Runs in mergekit's own environment: merges every config of a list (JSON: [[config file, folder], ...])."""

import json
import sys
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

for file, folder in json.loads(Path(sys.argv[1]).read_text()):
    config = MergeConfiguration.model_validate(yaml.safe_load(Path(file).read_text()))
    adapted = f"{folder}-adapted"
    run_merge(config, folder, options=MergeOptions(quiet=True, write_model_card=False, lora_merge_cache=adapted))
