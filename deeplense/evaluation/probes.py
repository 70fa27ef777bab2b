"""What frozen features know: the votes of nearest neighbours, and a linear classifier. N samples learnt from, n asked
about, D features, K classes."""

import warnings
from typing import Any, cast

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""As Wu et al. 2018 (arXiv:1805.01978) and DINO weigh the votes of neighbours."""
STRENGTHS = np.logspace(-4, 2, 7)
"""Inverse strengths of the penalty that are tried."""
MOST_FOLDS, MOST_ITERATIONS = 5, 1000


def knn_probabilities(features: np.ndarray, labels: np.ndarray, asked: np.ndarray, num_classes: int) -> np.ndarray:
    """Shares of the votes of the nearest features (N, D), by their cosines, for each class (n, K). A vote counts
    exp(cosine / 0.07)."""
    count = min(NEIGHBOURS, len(labels))

    def weights(distances: np.ndarray) -> np.ndarray:
        # Cosines less the best one: only ratios count, and none overflows.
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / TEMPERATURE)

    # Its list of what weights may be lacks functions, its documentation does not.
    model = KNeighborsClassifier(count, metric="cosine", algorithm="brute", weights=cast(Any, weights))
    model.fit(features, labels)
    return in_all_classes(np.asarray(model.predict_proba(asked)), np.unique(labels), num_classes)


def linear_probabilities(
    features: np.ndarray, labels: np.ndarray, asked: np.ndarray, num_classes: int, *, seed: int = 0
) -> np.ndarray:
    """Probabilities (n, K) of a logistic regression on standardised features (N, D), whose penalty is chosen by
    cross-validation among the samples learnt from. Raises ValueError where a class has one sample alone."""
    fewest = int(np.bincount(labels)[np.unique(labels)].min())
    if fewest < 2:
        raise ValueError(f"a class has {fewest} sample to learn from; a linear probe needs 2 of each class.")
    folds = StratifiedKFold(min(MOST_FOLDS, fewest), shuffle=True, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MOST_ITERATIONS))
    grid = {"logisticregression__C": STRENGTHS}
    search = GridSearchCV(pipeline, grid, scoring="neg_log_loss", cv=folds)
    with warnings.catch_warnings():
        # The weakest penalties hardly have an optimum to get to; what they give is judged like the rest.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(features.astype(float), labels)
    return in_all_classes(np.asarray(search.predict_proba(asked.astype(float))), np.unique(labels), num_classes)


def in_all_classes(probabilities: np.ndarray, known: np.ndarray, num_classes: int) -> np.ndarray:
    """Probabilities (n, k) of the known classes among those of all (n, K), 0 for what was never seen."""
    whole = np.zeros((len(probabilities), num_classes))
    whole[:, known] = probabilities
    return whole
