"""Probes of frozen features: a k-nearest-neighbour classifier and a linear classifier. N training samples, n query
samples, D features, K classes."""

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
"""The values of Wu et al. 2018 (arXiv:1805.01978) and DINO for weighting the votes of neighbours."""
STRENGTHS = np.logspace(-4, 2, 7)
"""Inverse regularisation strengths (C of scikit-learn) for the cross-validation."""
MOST_FOLDS, MOST_ITERATIONS = 5, 1000


def knn_probabilities(features: np.ndarray, labels: np.ndarray, asked: np.ndarray, num_classes: int) -> np.ndarray:
    """Class probabilities (n, K) of a k-nearest-neighbour classifier on features (N, D) with cosine similarity. A vote
    has the weight exp(cosine / 0.07)."""
    count = min(NEIGHBOURS, len(labels))

    def weights(distances: np.ndarray) -> np.ndarray:
        # The best cosine is subtracted to avoid overflow; only ratios matter.
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / TEMPERATURE)

    # The type stubs do not list functions as weights, although they are documented.
    model = KNeighborsClassifier(count, metric="cosine", algorithm="brute", weights=cast(Any, weights))
    model.fit(features, labels)
    return in_all_classes(np.asarray(model.predict_proba(asked)), np.unique(labels), num_classes)


def linear_probabilities(
    features: np.ndarray, labels: np.ndarray, asked: np.ndarray, num_classes: int, *, seed: int = 0
) -> np.ndarray:
    """Class probabilities (n, K) of a logistic regression on standardised features (N, D). The regularisation strength
    is selected by cross-validation on the training samples. Raises ValueError if a class has only one sample."""
    fewest = int(np.bincount(labels)[np.unique(labels)].min())
    if fewest < 2:
        raise ValueError(f"a class has {fewest} training sample; a linear probe needs at least 2 per class.")
    folds = StratifiedKFold(min(MOST_FOLDS, fewest), shuffle=True, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MOST_ITERATIONS))
    grid = {"logisticregression__C": STRENGTHS}
    search = GridSearchCV(pipeline, grid, scoring="neg_log_loss", cv=folds)
    with warnings.catch_warnings():
        # With very weak regularisation the solver may not converge; such results are scored like the others.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(features.astype(float), labels)
    return in_all_classes(np.asarray(search.predict_proba(asked.astype(float))), np.unique(labels), num_classes)


def in_all_classes(probabilities: np.ndarray, known: np.ndarray, num_classes: int) -> np.ndarray:
    """Expand probabilities (n, k) of the known classes to all classes (n, K), with 0 for classes without samples."""
    whole = np.zeros((len(probabilities), num_classes))
    whole[:, known] = probabilities
    return whole
