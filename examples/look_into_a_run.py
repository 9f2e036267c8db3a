"""What a run learned, in a few lines of Python.

    python examples/look_into_a_run.py RUN [--runs FOLDER] [--picture FILE]

Prints the accuracy and the routes by type of question, the surest mistakes, and what the model answers to a question
about a picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from trarctl import api


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="name of the run; by default the latest")
    parser.add_argument("--runs", default="runs", help="folder of the runs")
    parser.add_argument("--picture", type=Path, help="a picture to ask about")
    options = parser.parse_args()

    loaded = api.load_model(options.run, runs=options.runs)
    data = api.open_data(loaded.description.data)
    scores = api.score(options.run, split="val", runs=options.runs)
    measured = api.accuracy(scores, data, "val")
    print(f"{loaded.source.name}: {measured.overall:.2f} % of {measured.questions:,} questions")

    print("share of each span, by type of question and layer:")
    for name, shares in api.routes_by_type(scores, data, "val").items():
        layers = "  ".join(np.array2string(layer, precision=2) for layer in shares)
        print(f"  {name:<12}{measured.per_type[name]:6.2f} %  {layers}")

    split = data.split("val")
    truth = split.truth()
    predictions = np.array(scores.predictions())
    wrong = np.flatnonzero(predictions != np.array([truth.strings[code] for code in truth.codes[:, 0]]))
    surest = wrong[np.argsort(-scores.scores[wrong].max(axis=1))][:3]
    insight = api.look_inside(loaded, data, "val", surest.tolist()) if len(surest) else None
    for index, row in enumerate(surest.tolist()):
        cell = int(insight.answer_attention[index].argmax())
        print(f"wrong: {split.question_text(row)!r}: {predictions[row]}, read mostly from cell {cell}")

    if options.picture:
        from PIL import Image

        predictor = api.open_predictor(options.run, runs=options.runs)
        (asked,) = predictor.ask([Image.open(options.picture)], ["what color is the shape?"])
        print(f"{options.picture.name}: " + ", ".join(f"{answer} {share:.1%}" for answer, share in asked.answers[:3]))


if __name__ == "__main__":
    main()
