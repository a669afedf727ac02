"""Results of a comparison as `compare` writes them. Every number here is made up."""

import math
import random
from typing import Any

SEEDS = [0, 1, 2]
MINUTES = 4.0


def results() -> dict[str, Any]:
    """Return three sections: text, series, events."""
    return {
        "version": 1,
        "title": "Sequence models on three data sets",
        "created": "2026-05-11T14:32:08+00:00",
        "command": "stepscan compare shakespeare elecdemand flights --minutes 4 --seeds 3",
        "machine": {
            "processor": "AMD EPYC 9B14, 2 cores",
            "memory": "15.6 GB",
            "system": "Linux 6.8, x86-64-v4",
            "threads": "2",
        },
        "versions": {"stepscan": "0.1.0", "python": "3.11.7", "torch": "2.10.0", "numpy": "2.3.5"},
        "sections": [text(), series(), events()],
    }


def candidate(
    name: str,
    scores: list[float | None],
    *,
    rate: float = 30_000,
    decode: tuple[float, float] | None = (900, 900),
    state: tuple[int, int] | None = (98_304, 98_304),
    begin: float = 6.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Return a trained candidate; `scores` is what each seed reached on the leading metric."""
    draw = random.Random(f"{name}{seed}")
    curve = []
    for number, end in zip(SEEDS, scores, strict=True):
        stop = end if end is not None else begin * 1.4
        fall = draw.uniform(3.2, 4.4)
        share = [(k + 1) / 20 for k in range(20)]
        values: list[float | None] = [
            stop
            + (begin - stop) * (math.exp(-fall * x) - math.exp(-fall)) * draw.uniform(0.96, 1.04)
            for x in share
        ]
        if end is None:
            values[9:] = [None] * 11
        curve.append(
            {
                "seed": number,
                "seconds": [x * 60 * MINUTES for x in share],
                "tokens": [int(x * 60 * MINUTES * rate) for x in share],
                "score": values,
            }
        )
    config = {"layers": f"({name})*4", "width": 128, "head": {"name": "next_token"}, "dropout": 0.1}
    return {
        "name": name,
        "baseline": False,
        "parameters": 812_416 + draw.randrange(90_000),
        "config": config,
        "scores": {},
        "seconds": [60 * MINUTES + draw.uniform(-1, 1) for _ in SEEDS],
        "tokens": [int(60 * MINUTES * rate) for _ in SEEDS],
        "tokens_per_second": [rate * draw.uniform(0.97, 1.03) for _ in SEEDS],
        "decode_per_second": decode and {"1024": decode[0], "65536": decode[1]},
        "state_bytes": state and {"1024": state[0], "65536": state[1]},
        "curve": curve,
    }


def baseline(name: str, **scores: float) -> dict[str, Any]:
    """Return a baseline: one score a metric, nothing to decode."""
    return {
        "name": name,
        "baseline": True,
        "parameters": None,
        "config": None,
        "scores": {metric: [value] for metric, value in scores.items()},
        "seconds": [2.1],
        "tokens": [1_003_854],
        "tokens_per_second": None,
        "decode_per_second": None,
        "state_bytes": None,
        "curve": [],
    }


def scored(one: dict[str, Any], **scores: list[float | None]) -> dict[str, Any]:
    """Return the candidate with scores filled in."""
    return {**one, "scores": scores}


def text() -> dict[str, Any]:
    """Return the section of a text."""
    table: list[tuple[str, list[float | None], dict[str, Any]]] = [
        ("gated_delta_net", [1.934, 1.951, 1.940], {"rate": 31_400, "decode": (812, 806)}),
        ("mamba2", [1.972, 1.981, 1.969], {"rate": 38_900, "decode": (951, 948)}),
        (
            "attention",
            [2.011, 2.004, 2.023],
            {"rate": 44_200, "decode": (690, 84), "state": (2_097_152, 134_217_728)},
        ),
        (
            "lstm",
            [2.094, 2.071, 2.083],
            {"rate": 21_700, "decode": (1_430, 1_428), "state": (4_096,) * 2},
        ),
        (
            "mlstm",
            [1.988, None, 1.993],
            {"rate": 26_100, "decode": (702, 700), "state": (270_336,) * 2},
        ),
        (
            "rwkv7",
            [1.949, 1.962, 1.944],
            {"rate": 27_800, "decode": (733, 731), "state": (106_496,) * 2},
        ),
    ]
    models = []
    for name, values, more in table:
        top = [None if x is None else 0.62 - 0.1 * x for x in values]
        one = candidate(name, values, begin=5.1, **more)
        models.append(scored(one, **{"bits/byte": values, "accuracy": top}))
    return {
        "data": {
            "name": "shakespeare",
            "kind": "text",
            "lines": [
                "1,115,394 bytes in 1 document, read as bytes (257 symbols)",
                "train 1,003,854, valid 55,770, test 55,770 bytes",
                "the last tenth is held out",
            ],
            "findings": [],
        },
        "metric": "bits/byte",
        "metrics": [
            {
                "name": "bits/byte",
                "better": "lower",
                "definition": "Mean of -log2 p(next byte) over the test part.",
                "unit": "bits",
            },
            {
                "name": "accuracy",
                "better": "higher",
                "definition": "Share of test bytes whose most probable guess was right.",
                "unit": "",
            },
        ],
        "budget": {"minutes": MINUTES, "seeds": SEEDS},
        "candidates": [
            *models,
            baseline("5-gram, back-off", **{"bits/byte": 2.228, "accuracy": 0.397}),
        ],
        "verdict": "gated_delta_net leads rwkv7 by 0.010 ± 0.014 (3 of 3 seeds); "
        "attention's decode falls 8.2x from 1k to 64k",
        "examples": [
            {
                "type": "text",
                "title": "Two hundred bytes, temperature 0.8, seed 0",
                "prompt": "KING RICHARD:\n",
                "samples": [
                    {
                        "from": "gated_delta_net",
                        "text": "What say you, my lord, to the grave of the state?\nI have "
                        "not been a man of such a friend\nThat he shall bear the crown upon his "
                        "hand.\n\nDUKE OF YORK:\nMy lord, the people are in arms\nFor bread.",
                    },
                    {
                        "from": "5-gram, back-off",
                        "text": "Why, the thee to the of my but a so, and good my the sould\n"
                        "he con that an you tale have the it is for my lord\n\nGREMIO:\n"
                        "I'll thath the 'tis a the.",
                    },
                ],
            }
        ],
    }


def series() -> dict[str, Any]:
    """Return the section of a time series."""
    table: list[tuple[str, list[float | None]]] = [
        ("gated_delta_net", [0.812, 0.835, 0.824]),
        ("mamba2", [0.821, 0.842, 0.808]),
        ("attention", [0.866, 0.859, 0.901]),
        ("lstm", [0.930, 0.955, 0.921]),
    ]
    models = []
    for name, values in table:
        crps = [None if x is None else 214.0 * x for x in values]
        state = (2_097_152, 134_217_728) if name == "attention" else (98_304, 98_304)
        decode = (655.0, 79.0) if name == "attention" else (840.0, 838.0)
        one = candidate(name, values, begin=1.9, rate=18_400, state=state, decode=decode)
        models.append(scored(one, MASE=values, CRPS=crps))
    draw = random.Random(7)
    load = [4600 + 900 * math.sin((k - 16) * math.pi / 24) + draw.gauss(0, 90) for k in range(192)]
    actual, history = load[144:], load[:144]
    times = [f"2014-12-{24 + k // 48:02}T{k % 48 // 2:02}:{k % 2 * 30:02}:00" for k in range(192)]

    def bands(error: float, wide: float) -> dict[str, list[float]]:
        middle = [x + error * math.sin(k / 5) for k, x in enumerate(actual)]
        return {
            q: [x + side * wide * (1 + k / 60) for k, x in enumerate(middle)]
            for q, side in (("0.1", -1.0), ("0.5", 0.0), ("0.9", 1.0))
        }

    return {
        "data": {
            "name": "elecdemand",
            "kind": "series",
            "lines": [
                "1 series x 17,520 half hours, 2014",
                "target Demand (MW); covariates Temperature, WorkDay",
                "forecast 48 half hours ahead, quantiles .1 .5 .9; held out: last 28 days",
            ],
            "findings": [
                "31 missing half hours are kept as missing.",
                "2 rows share a time: kept first.",
            ],
        },
        "metric": "MASE",
        "metrics": [
            {
                "name": "MASE",
                "better": "lower",
                "definition": "Mean absolute error over that of the weekly seasonal naive forecast "
                "on the training part; below 1 is better than naive there.",
                "unit": "",
            },
            {
                "name": "CRPS",
                "better": "lower",
                "definition": "Twice the pinball loss, averaged over the quantiles .1 .5 .9.",
                "unit": "MW",
            },
        ],
        "budget": {"minutes": MINUTES, "seeds": SEEDS},
        "candidates": [
            *models,
            baseline("seasonal naive (week)", MASE=1.087, CRPS=262.4),
            baseline("DLinear", MASE=0.894, CRPS=201.0),
            baseline("last value", MASE=3.412, CRPS=881.7),
        ],
        "verdict": "gated_delta_net and mamba2 are not told apart (0.000 ± 0.035)",
        "examples": [
            {
                "type": "forecast",
                "title": "The last day of the year, 48 half hours ahead",
                "unit": "MW",
                "times": times,
                "history": history,
                "actual": actual,
                "forecasts": [
                    {"from": "gated_delta_net", "quantiles": bands(60, 140)},
                    {"from": "DLinear", "quantiles": bands(210, 330)},
                ],
            }
        ],
    }


def events() -> dict[str, Any]:
    """Return the section of an event log."""
    table: list[tuple[str, list[float | None]]] = [
        ("gated_delta_net", [0.241, 0.238, 0.244]),
        ("mamba2", [0.239, 0.236, 0.240]),
        ("attention", [0.247, 0.251, 0.246]),
        ("lstm", [None, None, None]),
    ]
    models = []
    for name, values in table:
        state = (2_097_152, 134_217_728) if name == "attention" else (98_304, 98_304)
        decode = (640.0, 81.0) if name == "attention" else (825.0, 819.0)
        one = candidate(name, values, begin=0.05, rate=22_000, state=state, decode=decode)
        models.append(scored(one, accuracy=values))
    return {
        "data": {
            "name": "flights",
            "kind": "events",
            "lines": [
                "334,264 events in 4,037 cases; activity: leg (224 kinds); time: departure",
                "whole aircraft by time: train 70 %, valid 10 %, test 20 %",
            ],
            "findings": ["1,904 events share a time with the one before: kept in file order."],
        },
        "metric": "accuracy",
        "metrics": [
            {
                "name": "accuracy",
                "better": "higher",
                "definition": "Share of test events whose activity was the most probable one.",
                "unit": "",
            }
        ],
        "budget": {"minutes": MINUTES, "seeds": SEEDS},
        "candidates": [
            *models,
            baseline("Markov chain, order 1", accuracy=0.162),
            baseline("most frequent", accuracy=0.031),
        ],
        "verdict": "attention leads gated_delta_net by 0.007 ± 0.009 (3 of 3 seeds), unsure",
        "examples": [
            {
                "type": "table",
                "title": "Next leg of N14228 after IAH>EWR",
                "columns": ["leg", "attention", "Markov chain, order 1", "happened"],
                "rows": [
                    ["EWR>IAH", 0.312, 0.21, "yes"],
                    ["EWR>MIA", 0.155, 0.09, None],
                    ["EWR>ORD", 0.098, 0.114, None],
                ],
            },
            {
                "type": "confusion",
                "title": "Which carrier was taken for which",
                "classes": ["UA", "DL", "B6"],
                "matrices": [
                    {"from": "attention", "counts": [[40, 2, 0], [3, 31, 1], [0, 0, 0]]},
                    {"from": "gated_delta_net", "counts": [[41, 1, 0], [2, 33, 0], [0, 0, 0]]},
                ],
            },
            {
                "type": "calibration",
                "title": "How often the likeliest class was right, by its probability",
                "curves": [{"from": "attention", "bins": [[0.5, 0.4, 20], [0.9, 0.95, 57]]}],
            },
        ],
    }
