"""easy-VQA as a table of one's own, with file names that say nothing, against the built-in set: the same recipe, seeds.

    python -m benchmarks.easy_table --work DIR [--seeds N] [--epochs N] [--jobs N]

Both have the same questions, pictures and splits; only the way in differs. One table at the end: accuracy on val after
the last epoch of ``small``, by seed, mean and spread.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import shutil
import statistics
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import orjson

from benchmarks.small_recipe import train, trarctl
from trarctl.data.datasets.easy_vqa import package_data

SPLITS = {"train": "train", "val": "test"}  # the package's names


def write_tables(folder: Path) -> None:
    """One CSV a split; pictures have names of no meaning, in folders, and the same number in two splits has two."""
    for split, theirs in SPLITS.items():
        source = package_data() / theirs
        with (folder / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["picture", "question", "answer"])
            for question, answer, image in orjson.loads((source / "questions.json").read_bytes()):
                digest = hashlib.sha256(f"{split} {image}".encode()).hexdigest()[:12]
                name = f"{digest[0]}/{digest} photo.png"
                if not (folder / "pictures" / name).is_file():
                    (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / "images" / f"{image}.png", folder / "pictures" / name)
                table.writerow([name, question, answer])


def prepared(kind: str, work: Path) -> Path:
    """Prepare the built-in set or the table once, at 4 x 4 cells."""
    out, source = work / kind, work / "easy-tables"
    if not (out / "manifest.json").is_file():
        common = ("--grid", "4", "--vectors", "none", "--out", str(out))
        if kind == "built-in":
            trarctl("prepare", "easy-vqa", *common)
        else:
            source.mkdir(parents=True, exist_ok=True)
            write_tables(source)
            tables = [word for split in SPLITS for word in (f"--{split}", str(source / f"{split}.csv"))]
            trarctl("prepare", "table", "--name", "easy-table", *tables, "--images", str(source / "pictures"), *common)
    return out


def main() -> None:
    """Train both with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs, which are not made twice")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's; the rate falls after 2/3 and 5/6 of them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    names = {"built-in": "easy-vqa", "table": "easy-table"}
    data = {kind: prepared(kind, options.work) for kind in names}
    results: dict[str, list[float]] = defaultdict(list)
    with ThreadPoolExecutor(options.jobs) as pool:
        asked = {
            pool.submit(train, names[kind], data[kind], options.work, "now", seed, options.epochs): (kind, seed)
            for seed in range(options.seeds)
            for kind in names
        }
        for future in as_completed(asked):
            (kind, seed), (accuracy, seconds) = asked[future], future.result()
            results[kind].append(accuracy)
            print(f"{kind:9} seed {seed}: {accuracy:6.2f} % in {seconds:4.0f} s", flush=True)
    print(f"\n{'':9} {'mean':>8} {'least':>8} {'most':>8}")
    for kind, values in results.items():
        print(f"{kind:9} {statistics.mean(values):7.2f}% {min(values):7.2f}% {max(values):7.2f}%")


if __name__ == "__main__":
    main()
