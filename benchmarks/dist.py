"""``make dist``: wheel and sdist, and the tour from a wheel that stands alone, with the oldest and newest packages.

    python -m benchmarks.dist [--only oldest|newest] [--keep]

Each set of packages gets a fresh environment below ``build``, which goes afterwards, and the commands of the README's
tour run in an empty folder far from the sources. Whatever fails ends it, with what the command said.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST, BUILD = ROOT / "dist", ROOT / "build"
EXTRAS = ("demo", "report")
IN_THE_WHEEL = ("config/recipes/vqa.toml", "report/templates/report.html", "report/templates/report.js", "py.typed")
TOUR = """
version
help train
settings learning_rate
prepare easy-vqa
show easy-vqa --report shown
train easy-vqa --name first --epochs 1
resume first --epochs 2
eval --ckpt first --report report
submit --ckpt first --out answers.json
predict --image {picture} --question "what shape is it?" --save attention.png
export --ckpt first --out shared
predict --ckpt shared --image {picture} --question "what shape is it?"
runs
"""


def run(*command: object, cwd: Path = ROOT, **environ: str) -> str:
    """Run a command; if it fails, show what it said and end."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n")
        sys.exit(f"exit code {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def oldest_pins() -> list[str]:
    """The lowest versions that the project allows, of what the tour needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    found = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(wanted), re.MULTILINE))
    assert len(found) == len({re.split(r"[<>=\[]", one)[0] for one in wanted}), wanted
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def build() -> Path:
    """Make wheel and sdist, and see that both hold everything, the same."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = [name for name in IN_THE_WHEEL if f"trarctl/{name}" not in names]
    sources = {f"trarctl/{path.relative_to(ROOT / 'trarctl')}" for path in (ROOT / "trarctl").rglob("*.py")}
    assert not missing, missing
    assert not sources - names, sources - names
    assert not [name for name in names if not name.startswith("trarctl")], names
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sdist)
        (again,) = Path(folder).glob("*.whl")
        assert set(zipfile.ZipFile(again).namelist()) == names, "the sdist lacks files"
    print(f"{wheel.name}, {wheel.stat().st_size / 1e3:.0f} kB; {sdist.name}, {sdist.stat().st_size / 1e3:.0f} kB")
    return wheel


def check(kind: str, wheel: Path, *, keeps: bool) -> None:
    """Install the wheel into a fresh environment, and go the tour."""
    folder = BUILD / f"dist-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    python, begun = folder / "bin" / "python", time.monotonic()
    pins = folder / "pins.txt"
    pins.write_text("\n".join(oldest_pins() if kind == "oldest" else []))
    run(python, "-m", "pip", "install", "--quiet", "-c", pins, f"trarctl[{','.join(EXTRAS)}] @ {wheel.as_uri()}")
    listed = dict(line.split("==") for line in run(python, "-m", "pip", "freeze").split() if "==" in line)
    shown = ", ".join(f"{name} {listed[name]}" for name in ("torch", "numpy", "typer", "pydantic", "spacy", "rich"))
    print(f"{kind}: Python {sys.version.split()[0]}, {shown}; installed in {time.monotonic() - begun:.0f} s")
    with tempfile.TemporaryDirectory() as empty:
        command = [python, "-c", "import easy_vqa, trarctl; print(easy_vqa.__file__, trarctl.__file__)"]
        data, package = (Path(text) for text in run(*command, cwd=Path(empty)).split())
        assert folder in package.parents, package
        picture = data.parent / "data" / "test" / "images" / "0.png"
        for line in TOUR.strip().splitlines():
            words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line.format(picture=picture))]
            begun = time.monotonic()
            said = run(folder / "bin" / "trarctl", *words, cwd=Path(empty), CUDA_VISIBLE_DEVICES="").splitlines()
            print(f"  {words[0]:<10}{time.monotonic() - begun:5.0f} s  {said[-1] if said else ''}"[:110])
        for result in ("shown/index.html", "report/index.html", "answers.json", "attention.png"):
            assert (Path(empty) / result).stat().st_size > 100, result
    if not keeps:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("oldest", "newest"), help="one set of packages alone")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    options = parser.parse_args()
    wheel = build()
    for kind in ("oldest", "newest"):
        if options.only in (None, kind):
            check(kind, wheel, keeps=options.keep)


if __name__ == "__main__":
    main()
