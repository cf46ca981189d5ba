"""The inception score (Salimans et al. 2016): exp of the mean divergence of p(y|x) from p(y), for any classifier."""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax


@dataclass(frozen=True)
class Score:
    """Mean and standard deviation over splits."""

    mean: float
    std: float
    splits: int


def inception_score(logits: npt.NDArray[np.floating], *, splits: int, seed: int | None) -> Score:
    """exp(E KL(p(y|x) || p(y))), between 1 and the number of classes, over `splits` equal parts.

    Args:
        logits: [N, K] of a classifier.
        splits: parts; each has its own p(y). Fewer where there are fewer images.
        seed: images are permuted with it first, so that a set ordered by class is not split by class; None: in order.
    """
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    if seed is not None:
        log_p = log_p[np.random.RandomState(seed).permutation(len(log_p))]  # torch-fidelity's order
    splits = max(min(splits, len(log_p)), 1)
    edges = [k * len(log_p) // splits for k in range(splits + 1)]
    scores = [_score(log_p[a:b]) for a, b in itertools.pairwise(edges)]
    return Score(float(np.mean(scores)), float(np.std(scores)), splits)


def _score(log_p: npt.NDArray[np.float64]) -> float:
    p = np.exp(log_p)
    with np.errstate(divide="ignore"):
        log_marginal = np.log(p.mean(axis=0))
    # A class of probability exactly 0 everywhere adds 0 * inf; it carries no divergence.
    terms = np.where(p > 0, p * (log_p - log_marginal), 0.0)
    return float(np.exp(terms.sum(axis=1).mean()))
