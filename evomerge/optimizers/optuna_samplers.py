"""TPE and Gaussian processes: the adapter of Optuna's samplers.

A study in memory carries the points; the record of evomerge is the one that lasts. Genes keep their own bounds and
kinds as Optuna's distributions, so what Optuna suggests is the genome. Points that are out count as running trials,
from which both samplers keep away (TPE: constant liar; GP: expected improvement over the batch).

- **TPE** (Bergstra et al. 2011; several objectives: Ozaki et al. 2022) sees every objective; weights play no part.
- **GP** (Matern 5/2 with a length scale per gene, log expected improvement: Ament et al. 2023) sees the weighted mean
  that also chooses the winner: hypervolume improvement costs Optuna ten times as much per ask.

A failure is told as the worst values so far, so that both learn to keep away from where candidates fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import TrialState, create_trial

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.novelty import Proposed
from evomerge.optimizers.optuna_quiet import quiet
from evomerge.optimizers.preference import Preference, nudge
from search_spaces.genes import Gene, Genes, Genome

MOST_TRIES = 20  # suggestions that were made before, until a uniform point is taken instead
FIRST_POINTS = 10  # successes before a model is made, Optuna's own default


class OptunaSearch:
    """One in-memory study; see the module's text. `tpe` and `gp` make one."""

    def __init__(
        self,
        genes: Genes,
        make_sampler: Callable[[int], BaseSampler],
        *,
        seed: int,
        objectives: int,
        preference: Preference | None = None,
    ) -> None:
        """``make_sampler``: from a seed of 32 bits; ``preference``: makes one number of the ``objectives``, which the
        sampler sees all if None."""
        self._genes = genes
        self._space = {gene.name: _distribution(gene) for gene in genes.genes}
        self._make_sampler = make_sampler
        self._columns = 1 if preference else objectives
        self._preference = preference
        self._rng = np.random.default_rng(seed)
        self._proposed = Proposed()
        self._out: dict[Genome, int] = {}  # trials of what was asked for and is not back
        self._told: list[Observation] = []  # what the study has seen, in order
        self._study = self._new_study()

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds, none of which was asked for or given before."""
        with quiet(verbosity=optuna.logging.ERROR):
            return [self._propose() for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Finish the trials of ``observations``; seeds with a genome become trials of their own."""
        with quiet(verbosity=optuna.logging.ERROR):
            rescaled = [self._rescales(o) for o in observations] if self._preference else []
            if any(rescaled):
                self._rebuild()
            for observation in observations:
                self._take(observation)

    def _propose(self) -> Genome:
        for _ in range(MOST_TRIES):
            trial = self._study.ask(self._space)
            genome = Genome([trial.params[name] for name in self._genes.names])
            if genome not in self._proposed:
                break
            self._study.tell(trial, state=TrialState.FAIL)
        else:  # the model is sure of a point that is measured already: look elsewhere
            genome = Genome(self._genes.from_unit(self._rng.random(len(self._genes))))
            trial = self._start(genome)
        self._proposed.add(genome)
        self._out[genome] = trial.number
        return genome

    def _start(self, genome: Genome) -> optuna.Trial:
        """Return a running trial of ``genome``."""
        self._study.enqueue_trial(self._params(genome))
        return self._study.ask(self._space)

    def _take(self, observation: Observation) -> None:
        genome = observation.genome
        if genome is None:
            return
        if observation.seed:
            self._proposed.add(genome)
        number = self._out.pop(genome, None)
        self._told.append(observation)
        values = self._values(observation)
        if number is not None:
            self._study.tell(number, values, state=TrialState.FAIL if values is None else TrialState.COMPLETE)
        elif values is not None:
            trial = create_trial(values=values, params=self._params(genome), distributions=self._space)
            self._study.add_trial(trial)

    def _values(self, observation: Observation) -> list[float] | None:
        """Return what the study is told; None for a failure while nothing has succeeded."""
        if observation.values is None:
            columns = [trial.values for trial in self._study.get_trials(deepcopy=False) if trial.values]
            return list(map(min, zip(*columns, strict=True))) if columns else None
        if self._preference:
            return [self._preference.scalar(observation.values, observation.tie_break)]
        return [float(value) + nudge(observation.tie_break) for value in observation.values]

    def _params(self, genome: Genome) -> dict[str, float]:
        pairs = zip(self._genes.genes, genome.values.tolist(), strict=True)
        return {gene.name: value if gene.kind == "real" else int(value) for gene, value in pairs}

    # ------------------------------------------------ seeds set the scale, and finished trials cannot be changed

    def _rescales(self, observation: Observation) -> bool:
        """Show a seed to the preference; return whether what was told before now has other numbers."""
        assert self._preference is not None
        if not observation.seed or observation.values is None:
            return False
        probe = np.stack([np.zeros(len(observation.values)), np.ones(len(observation.values))])
        before = self._preference.scaled(probe)
        self._preference.see_seed(observation.values)
        return bool(self._told) and not np.array_equal(before, self._preference.scaled(probe))

    def _rebuild(self) -> None:
        """Make the study anew with numbers on the present scale."""
        told, out = self._told, list(self._out)
        self._study, self._told, self._out = self._new_study(), [], {}
        for observation in told:
            self._take(observation)
        self._out = {genome: self._start(genome).number for genome in out}

    def _new_study(self) -> optuna.Study:
        with quiet(verbosity=optuna.logging.ERROR):
            return optuna.create_study(
                storage=optuna.storages.InMemoryStorage(),
                sampler=self._make_sampler(int(self._rng.integers(2**32))),
                directions=["maximize"] * self._columns,
            )


def _distribution(gene: Gene) -> BaseDistribution:
    if gene.kind == "categorical":
        return CategoricalDistribution(range(gene.choices))
    return (
        IntDistribution(int(gene.low), int(gene.high))
        if gene.kind == "integer"
        else FloatDistribution(gene.low, gene.high)
    )


def tpe(genes: Genes, *, objectives: int, seed: int) -> OptunaSearch:
    """Return the tree-structured Parzen estimator: joint for one objective, gene by gene for several."""

    def make_sampler(seed: int) -> BaseSampler:
        return TPESampler(seed=seed, n_startup_trials=FIRST_POINTS, constant_liar=True)

    return OptunaSearch(genes, make_sampler, seed=seed, objectives=objectives)


def gp(genes: Genes, *, preference: Preference, seed: int) -> OptunaSearch:
    """Return the Gaussian process that maximises the number of ``preference``."""

    def make_sampler(seed: int) -> BaseSampler:
        return GPSampler(seed=seed, n_startup_trials=FIRST_POINTS)

    return OptunaSearch(genes, make_sampler, seed=seed, objectives=1, preference=preference)
