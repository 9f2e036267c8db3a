"""Make the report of a full VQA v2 val split, 214,354 questions, and say how long it took and how large it is.

    python benchmarks/make_full_size.py vqa FOLDER/raw
    python benchmarks/report_size.py FOLDER

Scores are drawn at random around the truth; the features are tiny, since only those of the examples are read.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from trarctl import cli
from trarctl.config.resolve import resolve
from trarctl.config.settings import Settings
from trarctl.data.datasets.vqa import VQA
from trarctl.data.metrics import measure
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine.checkpoint import Description, TrainState, save_checkpoint
from trarctl.engine.evaluator import Request, Scores, choose
from trarctl.engine.loading import model_sizes
from trarctl.engine.run import RunFolder, replaced_settings
from trarctl.model.trar import TRAR
from trarctl.report.page import ReportRequest, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds raw/, gets everything else")
    folder = parser.parse_args().folder
    data = prepared(folder)
    settings = resolve(dataset="vqa", environ={}, sets=["model.grid_size=2", "run.name=full"]).settings
    checkpoint = write_run(folder / "runs", data, settings)
    split = data.split("val")
    scores = draw_scores(data, len(settings.model.spans), settings.model.num_layers)
    chosen = choose(Request(str(checkpoint), data.path, "val"))
    measured = measure(scores.predictions(), data, split, "official")
    began, before = time.perf_counter(), peak_megabytes()
    path, notes = write_report(ReportRequest(scores, measured, data, split, chosen), ready(folder / "report"))
    seconds = time.perf_counter() - began
    print(
        f"{len(split):,} questions, {len(data.answers):,} answers: {seconds:.1f} s, {path.stat().st_size / 1e6:.2f} MB"
    )
    print(f"memory {before:.0f} MB before, at most {peak_megabytes():.0f} MB; {'; '.join(notes)}")
    print(path)


def ready(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepared(folder: Path) -> PreparedData:
    """The prepared data, with features of four cells of eight numbers for each image of train and val."""
    out, feats = folder / "prepared", folder / "feats"
    if not feats.is_dir():
        run("prepare", "vqa", "--raw", folder / "raw", "--out", out, "--vectors", "none", "--without-features")
        random = np.random.default_rng(0)
        for images in VQA.image_sets:
            if images.is_required:
                for number in np.load(out / "images" / f"{images.name}.ids.npy").tolist():
                    array = random.normal(size=(4, 8)).astype(np.float32)
                    np.save(ready(feats / images.name) / images.features.name(number), array)
    run("prepare", "vqa", "--raw", folder / "raw", "--out", out, "--vectors", "none", "--features", feats, "--grid", 2)
    return open_prepared(out)


def run(*arguments: object) -> None:
    assert cli.run([str(argument) for argument in arguments]) == 0


def write_run(folder: Path, data: PreparedData, settings: Settings) -> Path:
    """A run of a full-size model that has learned nothing, with the metrics of 13 epochs."""
    run_folder = RunFolder(folder / "full")
    run_folder.create()
    run_folder.metrics_file.unlink(missing_ok=True)
    with replaced_settings(run_folder, settings, data.path):
        pass
    steps, num_layers, num_spans = 6_933, settings.model.num_layers, len(settings.model.spans)
    random = np.random.default_rng(0)
    for step in range(50, 13 * steps, 50):
        routes = random.dirichlet(np.ones(num_spans) * 50, size=num_layers).round(4).tolist()
        entry = {"event": "step", "epoch": step // steps + 1, "step": step, "loss": 10 / (1 + step / steps)}
        run_folder.record(entry | {"learning_rate": 1e-4, "temperature": 1.0, "routes": routes})
    model = TRAR(settings.model, model_sizes(data.card))
    path = run_folder.epoch_checkpoint(13)
    description = Description(
        trarctl="benchmark",
        torch=torch.__version__,
        run="full",
        dataset="vqa",
        settings=settings.model_dump(mode="json"),
        progress=TrainState(epoch=13),
        temperature=1.0,
        learning_rate=1e-4,
        vocabulary=list(data.vocabulary.words),
        answers=list(data.answers),
        feature_width=data.features.width,
        data=str(data.path.resolve()),
    )
    save_checkpoint(path, {f"model.{name}": tensor for name, tensor in model.state_dict().items()}, description)
    return path


def draw_scores(data: PreparedData, num_spans: int, num_layers: int) -> Scores:
    """Scores that are right on about six questions in ten."""
    split = data.split("val")
    random = np.random.default_rng(0)
    scores = random.normal(-6, 1.5, size=(len(split), len(data.answers))).astype(np.float32)
    offsets, answer, _ = split.targets
    has_target = np.flatnonzero(np.diff(offsets))
    lucky = has_target[random.random(len(has_target)) < 0.6]
    scores[lucky, answer[offsets[lucky]]] += random.normal(8, 2, size=len(lucky)).astype(np.float32)
    routes = random.dirichlet(np.ones(num_spans), size=(len(split), num_layers)).astype(np.float32)
    return Scores(split.question_id, scores, routes, data.answers, is_exclusive=False)


if __name__ == "__main__":
    main()
