"""Which trials a sweep has and what came of them: Optuna's journal, one file that any job may add a line to.

A trial is added in a single write, with all of its values: whoever is killed leaves it there whole or not at all.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipeline.runtime.files import content_hash
from slurm.sweep.settings import PruningConfig, SweepSettings
from slurm.sweep.space import Dimension, Params, grid

NAME = "sweep"
WORDS = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_study(journal: Path, settings: SweepSettings, *, repair: bool = False) -> Study:
    """The study, made if need be.

    Args:
        repair: what a writer killed in the middle of a line left is taken away; for who holds the sweep's lock.
    """
    if repair:
        _repair(journal)
    lock = JournalFileOpenLock(str(journal))  # safe on NFS from version 3
    storage = JournalStorage(JournalFileBackend(str(journal), lock))
    return optuna.create_study(
        storage=storage,
        study_name=NAME,
        direction=settings.direction,
        load_if_exists=True,
        pruner=pruner_for(settings.pruning),
    )


def _repair(journal: Path) -> None:
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)  # nobody else writes now: a dead writer's
    if not journal.is_file():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(journal, whole)


def pruner_for(pruning: PruningConfig) -> optuna.pruners.BasePruner:
    """Optuna's rule. Rungs are counted in images seen, which batch sizes do not change."""
    first = round(1000 * pruning.first_kimg)
    if pruning.kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=pruning.startup, n_warmup_steps=first)
    if pruning.kind == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=pruning.eta)
    if pruning.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first, reduction_factor=pruning.eta)
    return optuna.pruners.NopPruner()


def distribution(d: Dimension) -> BaseDistribution:
    """A dimension as Optuna has it."""
    if d.finite:
        return CategoricalDistribution(d.choices)
    if d.integer:
        return IntDistribution(int(d.low), int(d.high), log=d.log)
    return FloatDistribution(d.low, d.high, log=d.log)


def add(study: Study, params: Params, dimensions: Sequence[Dimension]) -> FrozenTrial:
    """A new trial that is to be run."""
    distributions = {d.key: distribution(d) for d in dimensions}
    study.add_trial(create_trial(state=TrialState.RUNNING, params=dict(params), distributions=distributions))
    return study.get_trials(deepcopy=False)[-1]


def tell(study: Study, trial: FrozenTrial, word: str, *, value: float | None, notes: Mapping[str, Any]) -> None:
    """What came of a trial; notes (values by seed, cost, cause) go first, so that who is killed leaves it untold."""
    storage = study._storage
    for key, note in notes.items():
        storage.set_trial_user_attr(trial._trial_id, key, note)
    state = next(state for state, name in WORDS.items() if name == word)
    storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])


def report(study: Study, number: int, *, images: int, value: float) -> bool:
    """Note a trial's value at a rung; whether the trial should end there."""
    trial = study.get_trials(deepcopy=False)[number]
    study._storage.set_trial_intermediate_value(trial._trial_id, images, value)
    trial = study.get_trials(deepcopy=False)[number]
    return bool(study.pruner.prune(study, trial))


def remade(
    trials: Iterable[FrozenTrial], settings: SweepSettings, dimensions: Sequence[Dimension], *, sampler: Any = None
) -> Study:
    """The trials in memory, all with the space as it is now: an extended sweep's old trials are of a smaller one."""
    distributions = {d.key: distribution(d) for d in dimensions}
    study = optuna.create_study(storage=InMemoryStorage(), direction=settings.direction, sampler=sampler)
    for trial in trials:
        if all(
            name in trial.params and d._contains(_inner(d, trial.params[name])) for name, d in distributions.items()
        ):
            params = {name: trial.params[name] for name in distributions}
            copy = create_trial(
                state=trial.state,
                params=params,
                distributions=distributions,
                values=trial.values if trial.state == TrialState.COMPLETE else None,
                intermediate_values=trial.intermediate_values,
                user_attrs=trial.user_attrs,
            )
            study.add_trial(copy)
    return study


def _inner(d: BaseDistribution, value: Any) -> float:
    if isinstance(d, CategoricalDistribution):
        return float(d.to_internal_repr(value)) if value in d.choices else -1.0
    return float(value)


def next_params(
    trials: Sequence[FrozenTrial], settings: SweepSettings, dimensions: Sequence[Dimension]
) -> Params | None:
    """What to try next, from the trials so far; None where a grid has no more, or nothing may be chosen yet.

    In order: trial k sees what trials 0 to k - at_once ended with, and of those after them only that they run.
    """
    number = len(trials)
    if settings.strategy.kind == "grid":
        seen = {frozenset(t.params.items()) for t in trials}
        every = grid(dimensions_of_space(settings, dimensions), settings.rows)
        return next((p for p in every if frozenset(p.items()) not in seen), None)
    seed = int(content_hash([settings.strategy.seed, number])[:8], 16)
    if settings.strategy.kind == "random":
        study = remade([], settings, dimensions, sampler=optuna.samplers.RandomSampler(seed=seed))
    else:
        known = trials
        if settings.in_order:
            settled = max(number - settings.at_once + 1, 0)
            if any(t.state == TrialState.RUNNING for t in trials[:settled]):
                return None
            known = [*trials[:settled], *(_as_running(t) for t in trials[settled:])]
        startup = settings.strategy.startup
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
        study = remade(known, settings, dimensions, sampler=sampler)
    return dict(study.ask({d.key: distribution(d) for d in dimensions}).params)


def dimensions_of_space(settings: SweepSettings, dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Without the keys of rows."""
    return [d for d in dimensions if d.key in settings.space]


def _as_running(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions)
