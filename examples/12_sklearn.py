"""Sequences in a scikit-learn pipeline: scale, classify, cross-validate, search."""

import numpy as np
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import stepscan as ss


def made_up_machines(count: int = 160) -> tuple[list[np.ndarray], np.ndarray]:
    """Vibration of machines, as long as it was recorded: worn ones tremble faster."""
    rng = np.random.default_rng(0)
    state = rng.choice(["sound", "worn"], count)
    X = []
    for speed in np.where(state == "worn", 1.2, 0.4):
        t = np.arange(rng.integers(15, 30)) * speed + rng.uniform(0, 6)
        X.append(np.sin(t) + 0.1 * rng.normal(size=len(t)))
    return X, state


def differences(X: list[np.ndarray]) -> list[np.ndarray]:
    """Two channels: the value, and its change."""
    return [np.stack([x, np.diff(x, prepend=x[:1])], 1) for x in X]


if __name__ == "__main__":
    X, y = made_up_machines()
    model = ss.SequenceClassifier(steps=120, width=16, layers="min_gru", learning_rate=1e-2)
    pipe = make_pipeline(FunctionTransformer(differences), model)

    scores = cross_val_score(pipe, X, y, cv=2)
    print("accuracy in two folds:", scores.round(2))

    search = GridSearchCV(pipe, {"sequenceclassifier__layers": ["min_gru", "mamba2"]}, cv=2)
    search.fit(X, y)
    print("best:", search.best_params_)
    print("probabilities of", search.classes_, search.predict_proba(X[:2]).round(2).tolist())

    steps = differences(X[:1])[0][:, None]  # one step at a time, as they come in
    said = search.best_estimator_[-1].model_.predict_stream(steps, top=1)
    print("after every fifth step:", [answer[0].what for answer in said][4::5], "is", y[0])
