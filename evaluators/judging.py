"""From answers to scores: the task's own filters, `process_results` and aggregation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, mean_stderr

from evaluators.errors import MeasurementFailed
from evaluators.evaluation import FailureKind, Score
from evaluators.library_state import calling_lm_eval
from evaluators.metrics import Measure
from evaluators.scoring import LogLikelihoods
from evaluators.tasks import LoadedTask

Response: TypeAlias = Any  # str, (log-likelihood, is greedy), or a log-likelihood
