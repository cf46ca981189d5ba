"""The Optuna study of a sweep: journal storage in the sweep's folder, asked for parameters and told of results.

A trial is one line of the journal with its number and parameters as user attributes, so a process that is killed leaves
it there whole or not at all, and the choices of the search space are not repeated. Samplers see the trials in a study
in memory, with the search space as it is now. Only searches by TPE and pruning need the journal while a sweep runs.
"""

import os
import warnings
from collections.abc import Iterable, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from pipeline.runtime.files import content_hash, write_json
from slurm.sweep.runs import known_params, params_file
from slurm.sweep.settings import Dimension, Params, PruningConfig, SweepDir, SweepSettings

JOURNAL, TRIAL, PARAMS, SEED = "study.journal", "trial", "params", "seed"
ENOUGH = 6  # complete trials, below which importance means nothing

optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Lock(JournalFileOpenLock):  # type: ignore[misc]
    """Optuna's own lock, made by O_EXCL, which NFS has from version 3 on, with or without flock.

    Whoever gets the lock first removes a line that a killed writer left half written: nobody else writes now.
    """

    def __init__(self, journal: str) -> None:
        super().__init__(journal)
        self._journal = journal

    def acquire(self) -> bool:
        super().acquire()
        with open(self._journal, "rb+") as file:  # noqa: PTH123 - Optuna's path is text
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True


def open_study(sweep: SweepDir, settings: SweepSettings) -> Study:
    """The study, made if need be."""
    journal = str(sweep.path / JOURNAL)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(journal, _Lock(journal))),
        study_name="sweep",
        direction="minimize" if settings.minimize else "maximize",
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
        pruner=pruner_for(settings.pruning),
    )


def pruner_for(pruning: PruningConfig) -> optuna.pruners.BasePruner:
    """Optuna's pruner. Its steps are images seen, which batch sizes do not change."""
    first = round(1000 * pruning.first_kimg)
    if pruning.kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=pruning.startup, n_warmup_steps=first)
    if pruning.kind == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=pruning.eta)
    if pruning.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first, reduction_factor=pruning.eta)
    return optuna.pruners.NopPruner()


def params_of(sweep: SweepDir, settings: SweepSettings, number: int) -> Params:
    """The parameters of a trial, chosen now where nobody has yet. However often it is asked, the answer stays."""
    chosen = known_params(sweep, settings, number)
    if chosen is not None and not settings.needs_study:
        return chosen
    with sweep.lock("study"):
        study = open_study(sweep, settings) if settings.needs_study else None
        chosen = chosen if chosen is not None else known_params(sweep, settings, number)
        trials = study.get_trials(deepcopy=False) if study is not None else []
        own = next((t for t in trials if t.user_attrs.get(TRIAL) == number), None)
        if chosen is None:  # the journal has it where its asker was killed before the file was written
            chosen = own.user_attrs[PARAMS] if own is not None else choose(trials, settings, number)
        if study is not None and own is None:
            attributes = {TRIAL: number, PARAMS: chosen}
            study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        if settings.strategy.kind != "grid":
            write_json(params_file(sweep, number), chosen)
    return chosen


def choose(trials: Sequence[FrozenTrial], settings: SweepSettings, number: int) -> Params:
    """What a search tries as its trial `number`.

    Random search, and the first trials of TPE: a function of the sweep's seed and the number. Later trials of TPE: of
    what has ended by now too, so they depend on which trials end first.
    """
    seed, startup = int(content_hash([settings.strategy.seed, number])[:8], 16), settings.strategy.startup
    if settings.strategy.kind == "random" or number < startup:
        study = remade([], settings, optuna.samplers.RandomSampler(seed=seed))
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
        study = remade(trials, settings, sampler)
    return dict(study.ask({d.key: distribution(d) for d in settings.dimensions}).params)


def distribution(d: Dimension) -> BaseDistribution:
    """A dimension as Optuna has it."""
    if d.finite:
        return CategoricalDistribution(d.choices)
    if d.integer:
        return IntDistribution(int(d.low), int(d.high), log=d.log)
    return FloatDistribution(d.low, d.high, log=d.log)


def remade(trials: Iterable[FrozenTrial], settings: SweepSettings, sampler: optuna.samplers.BaseSampler) -> Study:
    """The trials in memory, with the search space as it is now; those that lie outside of it are left out."""
    distributions = {d.key: distribution(d) for d in settings.dimensions}
    direction = "minimize" if settings.minimize else "maximize"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(storage=InMemoryStorage(), direction=direction, sampler=sampler)
    for trial in trials:
        params = trial.user_attrs.get(PARAMS, {})
        if params.keys() == distributions.keys() and all(_contains(d, params[k]) for k, d in distributions.items()):
            copy = create_trial(
                state=trial.state,
                params=params,
                distributions=distributions,
                values=trial.values if trial.state == TrialState.COMPLETE else None,
                intermediate_values=trial.intermediate_values,
            )
            study.add_trial(copy)
    return study


def _contains(d: BaseDistribution, value: str | float) -> bool:
    if isinstance(d, CategoricalDistribution):
        return value in d.choices
    return bool(d.low <= float(value) <= d.high)


class Reporter:
    """What one run reports to the study while it trains, and tells it when it ends. The study stays open meanwhile."""

    def __init__(self, sweep: SweepDir, settings: SweepSettings, number: int) -> None:
        """`number`: the sweep's; the study has its own, in the order in which trials were asked for."""
        self._study, self._seeds = open_study(sweep, settings), settings.seeds
        found = self._study.get_trials(deepcopy=False)
        self._own = next(t for t in found if t.user_attrs.get(TRIAL) == number)
        self.known = set(self._own.intermediate_values)  # reported by an earlier start

    def report(self, images: int, value: float) -> bool:
        """Report a value after so many images; whether the pruner ends the trial there. Values come in order."""
        trial = Trial(self._study, self._own._trial_id)
        trial.report(value, images)
        self.known.add(images)
        return bool(trial.should_prune())

    def tell_pruned(self) -> None:
        """The trial has been pruned. Told again, nothing changes."""
        self._study.tell(self._own.number, state=TrialState.PRUNED, skip_if_finished=True)

    def tell(self, seed: int, value: float) -> None:
        """The value of one seed. The seed that is the last to be told of tells the mean of all; again changes nothing.

        The journal has one order for all writers: of seeds that end at the same time, one finds all others there.
        """
        if self._study.get_trials(deepcopy=False)[self._own.number].state.is_finished():
            return
        Trial(self._study, self._own._trial_id).set_user_attr(f"{SEED}{seed}", value)
        told = self._study.get_trials(deepcopy=False)[self._own.number].user_attrs
        values = [told[f"{SEED}{n}"] for n in range(self._seeds) if f"{SEED}{n}" in told]
        if len(values) == self._seeds:
            self._study.tell(self._own.number, sum(values) / len(values), skip_if_finished=True)


def study_of(done: Sequence[tuple[Params, float]], settings: SweepSettings) -> Study:
    """Complete trials in memory, from the parameters and the value of each: for importance and plots."""
    found = [create_trial(value=value, user_attrs={PARAMS: dict(params)}) for params, value in done]
    return remade(found, settings, optuna.samplers.RandomSampler())


def importances(done: Sequence[tuple[Params, float]], settings: SweepSettings) -> dict[str, float]:
    """The share of each setting in what tells good trials from the others (PED-ANOVA); {} where there are too few."""
    study = study_of(done, settings)
    if len(study.get_trials(deepcopy=False)) < ENOUGH:
        return {}
    share = max(0.1, min(1 / 3, ENOUGH / len(done)))  # of few trials, a tenth is one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(value) for key, value in shares.items()}
