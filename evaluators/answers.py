"""What a model answered to the requests of a plan, and what was asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from lm_eval.api.instance import Instance

from evaluators.encoding import Prompt
from evaluators.evaluation import Floats
from evaluators.plan import TaskPart
from evaluators.requests import Encoded, RequestBook
from evaluators.scoring import LogLikelihoods


@dataclass(frozen=True)
class Answers:
    """Answers of one model.

    Attributes:
        likelihoods: of the scored requests.
        texts: (generated,) the text of each generated answer up to its stop.
        tokens: (generated,) int64 new tokens of each, the one that ended it included; None where it is not known.
        seconds: (generated,) float64 wall time of each, a batch's time shared by tokens; None where it is not known.
    """

    likelihoods: LogLikelihoods
    texts: Sequence[str] = ()
    tokens: npt.NDArray[np.int64] | None = None
    seconds: Floats | None = None

    def of(self, part: TaskPart) -> Answers:
        """Return the answers to one part of the plan."""
        mine = part.requests
        if not part.generates:
            return Answers(LogLikelihoods(self.likelihoods.values[mine], self.likelihoods.greedy[mine]))
        none = LogLikelihoods(self.likelihoods.values[:0], self.likelihoods.greedy[:0])
        tokens = None if self.tokens is None else self.tokens[mine]
        seconds = None if self.seconds is None else self.seconds[mine]
        return Answers(none, self.texts[mine], tokens, seconds)


@dataclass(frozen=True)
class Asked:
    """The requests of one part of a plan, document after document.

    Attributes:
        counts: (documents,) number of requests of each document.
        sizes: (requests,) int64 scored tokens of a log-likelihood request, prompt tokens of a generation; None
            where no tokenizer is known.
    """

    instances: tuple[Instance, ...]
    counts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, part: TaskPart, book: RequestBook) -> Asked:
        """Return the requests of one part of a plan, from the book that has tokenised them."""
        requests = book.requests(part.task, part.documents)
        instances = tuple(instance for request in requests for instance in request.instances)
        sizes = [_size(encoded) for request in requests for encoded in request.encoded]
        return cls(instances, part.counts, np.array(sizes, dtype=np.int64))


def _size(encoded: Encoded) -> int:
    if isinstance(encoded, Prompt):
        return len(encoded.tokens)
    return sum(len(window.continuation) for window in encoded)
