"""What the numbers of a sweep say: which settings matter, and whether validation loss predicts the metric."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState
from scipy.stats import spearmanr

from slurm.sweep.driver import dimensions_of, trials_of
from slurm.sweep.folder import SweepDir
from slurm.sweep.measured import Measured
from slurm.sweep.settings import SweepSettings
from slurm.sweep.trials import remade

ENOUGH = 6  # trials, below which neither number means anything
BEST = 6  # trials that are told from the others, at least
STRONG, WEAK = 0.8, 0.4


def importances(sweep: SweepDir, settings: SweepSettings) -> dict[str, float]:
    """The share of each setting in what tells good trials from the others (PED-ANOVA); {} where there are too few."""
    done = [t for t in trials_of(sweep) if t.state == TrialState.COMPLETE]
    varied = [d for d in dimensions_of(settings) if not d.finite or len(d.choices) > 1]
    if len(done) < ENOUGH or not varied:
        return {}
    study = remade(done, settings, varied)
    if len(study.get_trials(deepcopy=False)) < ENOUGH:
        return {}
    share = max(0.1, min(1 / 3, BEST / len(done)))  # of few trials, a tenth is one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(value) for key, value in found.items()}


def loss_predicts(found: Sequence[Measured], settings: SweepSettings) -> str:
    """Whether the trial with the lower validation loss is the one with the better metric, in words."""
    pairs = [(m.last_loss, m.value) for m in found if m.value is not None and m.last_loss is not None]
    if settings.metric == "valid/loss":
        return "The metric is the validation loss itself."
    if len(pairs) < ENOUGH:
        return f"{len(pairs)} trials have both a validation loss and {settings.metric}: too few to say."
    losses, values = zip(*pairs, strict=True)
    if len(set(losses)) == 1 or len(set(values)) == 1:
        return "All trials have the same validation loss or the same value: there is nothing to correlate."
    answer = spearmanr(losses, values)
    rho = float(answer.statistic) * (1 if settings.direction == "minimize" else -1)
    if rho > STRONG:
        word = "yes: the order of the losses is nearly the order of the metric"
    elif rho > WEAK:
        word = "partly: a low loss makes a good metric likelier, and does not choose the best trial"
    elif rho > -WEAK:
        word = "no: choosing by loss is choosing at random"
    else:
        word = "no: the lower loss goes with the worse metric"
    by_loss = min(
        (m for m in found if m.value is not None and m.last_loss is not None), key=lambda m: m.last_loss or 0.0
    )
    return (
        f"Spearman's rank correlation over {len(pairs)} trials is {rho:+.2f} (p = {float(answer.pvalue):.2g}; +1: the "
        f"lower loss is always the better {settings.metric}). Does loss predict {settings.metric} here? {word}. "
        f"By loss one would have chosen trial {by_loss.number:04d} ({settings.metric} {by_loss.value:.4g})."
    )
