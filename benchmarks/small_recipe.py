"""How the recipe ``small`` was chosen: variants of it on several tables, by their val splits.

    python -m benchmarks.small_recipe --work DIR [--rad FOLDER] [--seeds N] [--only VARIANT ...] [--sets NAME ...]

Tables: easy-VQA's pictures and training questions under other names; drawings of several objects, with questions that
count, compare and relate them as CLEVR's do; VQA-RAD, where its folder is named. No test split is looked at. One table
at the end: accuracy on val, mean and spread over seeds, and seconds of training on one CPU thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import orjson
from PIL import Image, ImageDraw

from trarctl.data.datasets.easy_vqa import package_data

COLORS = {
    "red": 0xFF0000,
    "green": 0x00A000,
    "blue": 0x0000FF,
    "yellow": 0xE8D000,
    "purple": 0x9000B0,
    "gray": 0x808080,
}
SHAPES = ("square", "circle", "triangle")
SIZES = {"small": 9, "large": 16}  # half the side, in pixels
SIDE, NUM_DRAWINGS, QUESTIONS_EACH = 128, 1_500, 8
TWO: dict[str, object] = {"model.num_layers": 2}
DROPOUT: dict[str, object] = {"model.dropout": 0.1}
WIDE: dict[str, object] = {"model.hidden_size": 256, "model.feed_forward_size": 1024, "model.flat_out_size": 512}

# Side of the grid, and changes to the recipe as it is.
VARIANTS: dict[str, tuple[int, dict[str, object]]] = {
    "now": (4, {}),
    "bce": (4, {"train.loss": "bce"}),
    "2e-3": (4, {"train.learning_rate": 2e-3}),
    "dropout": (4, DROPOUT),
    "two layers": (4, TWO),
    "two layers, dropout": (4, TWO | DROPOUT),
    "wide": (4, WIDE),
    "8x8": (8, {}),
}


def easy_table(folder: Path) -> list[dict[str, Any]]:
    """easy-VQA's training questions; pictures have names that say nothing, in folders."""
    source = package_data() / "train"
    rows = []
    for question, answer, image in orjson.loads((source / "questions.json").read_bytes()):
        digest = hashlib.sha256(f"{image}".encode()).hexdigest()[:12]
        name = f"{digest[0]}/{digest} photo.png"
        if not (folder / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / "images" / f"{image}.png", folder / name)
        rows.append({"image": name, "question": question, "answer": answer})
    return rows


def drawn_table(folder: Path) -> list[dict[str, Any]]:
    """Pictures of three to six objects, and questions about them."""
    chance, rows = random.Random(0), []  # noqa: S311
    for number in range(NUM_DRAWINGS):
        objects = list(_objects(chance))
        picture = Image.new("RGB", (SIDE, SIDE), 0xD8D8D8)
        draw = ImageDraw.Draw(picture)
        for one in objects:
            x, y, half = one["x"], one["y"], SIZES[one["size"]]
            box, color = (x - half, y - half, x + half, y + half), f"#{COLORS[one['color']]:06x}"
            if one["shape"] == "square":
                draw.rectangle(box, fill=color)
            elif one["shape"] == "circle":
                draw.ellipse(box, fill=color)
            else:
                draw.polygon(((x, y - half), (x - half, y + half), (x + half, y + half)), fill=color)
        name = f"drawing-{number:05d}.png"
        picture.save(folder / name)
        asked = dict(_ask(chance, objects) for _ in range(QUESTIONS_EACH))
        rows += [{"image": name, "question": question, "answer": answer} for question, answer in asked.items()]
    return rows


def _objects(chance: random.Random) -> Iterator[dict[str, Any]]:
    places = chance.sample([(x, y) for x in range(3) for y in range(3)], chance.randint(3, 6))
    for column, row in places:
        x, y = (22 + 42 * place + chance.randint(-5, 5) for place in (column, row))
        yield {
            "x": x,
            "y": y,
            "color": chance.choice(list(COLORS)),
            "shape": chance.choice(SHAPES),
            "size": chance.choice(list(SIZES)),
        }


def _ask(chance: random.Random, objects: list[dict[str, Any]]) -> tuple[str, str]:
    """One question with its answer."""
    color, other = chance.sample(list(COLORS), 2)
    shape, kind = chance.choice(SHAPES), chance.randrange(5)
    if kind == 0:
        return f"how many {color} objects are there?", str(sum(one["color"] == color for one in objects))
    if kind == 1:
        is_there = any(one["color"] == color and one["shape"] == shape for one in objects)
        return f"is there a {color} {shape}?", "yes" if is_there else "no"
    if kind == 2:
        more = sum((one["color"] == color) - (one["color"] == other) for one in objects)
        return f"are there more {color} objects than {other} objects?", "yes" if more > 0 else "no"
    unique = [
        one for one in objects if sum((o["color"], o["shape"]) == (one["color"], one["shape"]) for o in objects) == 1
    ]
    if not unique:
        return f"how many {shape}s are there?", str(sum(one["shape"] == shape for one in objects))
    one = chance.choice(unique)
    if kind == 3:
        return f"what size is the {one['color']} {one['shape']}?", one["size"]
    left = sum(o["x"] < one["x"] - 20 for o in objects)
    return f"how many objects are left of the {one['color']} {one['shape']}?", str(left)


def prepared(name: str, grid: int, work: Path, rad: Path | None) -> Path:
    """Prepare a table once."""
    out, source = work / f"{name}-{grid}", work / f"{name}-source"
    if not (out / "manifest.json").is_file():
        pictures, questions = source / "pictures", source / "questions.jsonl"
        if name == "rad":
            command = ["prepare", "vqa-rad", "--raw", str(rad)]
        else:
            if not questions.is_file():
                pictures.mkdir(parents=True, exist_ok=True)
                rows = easy_table(pictures) if name == "easy" else drawn_table(pictures)
                questions.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
            command = ["prepare", "table", "--name", name, "--questions", str(questions), "--images", str(pictures)]
        trarctl(*command, "--grid", str(grid), "--out", str(out), "--vectors", "none")
    return out


def trarctl(*arguments: str) -> None:
    command = [sys.executable, "-m", "trarctl", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


def train(name: str, data: Path, work: Path, variant: str, seed: int, epochs: int | None) -> tuple[float, float]:
    """Accuracy on val after the last epoch, and seconds of training."""
    run = f"{name}-{re.sub('[^a-z0-9]+', '-', variant)}-{seed}"
    metrics = work / "runs" / run / "metrics.jsonl"
    if not metrics.is_file():
        changes = {"run.folder": work / "runs", "run.gpus": "cpu", "run.num_threads": 1, "run.keep": 1}
        changes |= VARIANTS[variant][1] | {"train.seed": seed}
        if epochs is not None:
            changes |= {"train.epochs": epochs, "train.decay_epochs": f"{epochs * 2 // 3},{epochs * 5 // 6}"}
        sets = [argument for key, value in changes.items() for argument in ("--set", f"{key}={value}")]
        known = "vqa-rad" if name == "rad" else name
        trarctl("train", known, "--data", str(data), "--recipe", "small", "--name", run, *sets)
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = sum(event["seconds"] for event in events if event["event"] == "epoch")
    return [event["overall"] for event in events if event["event"] == "validation"][-1], seconds


def main() -> None:
    """Train what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for tables and runs, which are not made twice")
    parser.add_argument("--rad", type=Path, help="raw folder of VQA-RAD")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's; the rate falls after 2/3 and 5/6 of them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--sets", nargs="+", choices=("easy", "drawn", "rad"), default=["easy", "drawn"])
    options = parser.parse_args()
    results: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with ThreadPoolExecutor(options.jobs) as pool:
        asked = {}
        for name, seed, variant in product(options.sets, range(options.seeds), options.only):
            data = prepared(name, VARIANTS[variant][0], options.work, options.rad)
            asked[pool.submit(train, name, data, options.work, variant, seed, options.epochs)] = name, variant, seed
        for future in as_completed(asked):
            (name, variant, seed), (accuracy, seconds) = asked[future], future.result()
            results[name, variant].append((accuracy, seconds))
            print(f"{name:6} {variant:22} seed {seed}: {accuracy:6.2f} % in {seconds:4.0f} s", flush=True)
    print(f"\n{'table':6} {'variant':22} {'val':>8} {'least':>8} {'most':>8} {'seconds':>8}")
    for (name, variant), found in sorted(results.items()):
        values, times = zip(*found, strict=True)
        mean, middle = statistics.mean(values), statistics.median(times)
        print(f"{name:6} {variant:22} {mean:7.2f}% {min(values):7.2f}% {max(values):7.2f}% {middle:8.0f}")


if __name__ == "__main__":
    main()
