"""Pictures, and tables of pictures and questions."""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from tests.fuzz.array_surfaces import half_json
from tests.fuzz.bases import small_run
from tests.fuzz.harness import UNKNOWN, Effect, Mutation, Ran, Surface, call
from tests.fuzz.mutators import Mutator, damage_bytes, load_json, marked_text, odd_json, replace_file
from tests.report.bright import UNDONE
from tests.small_runs import make_raw
from trarctl.data.prepared import open_prepared

PLAIN = ".plain.png"  # beside a picture in another form: the same in eight bits, upright; hidden from the program


def ask(work: Path, *arguments: object) -> Ran:
    """Ask the small run."""
    ckpt = small_run().runs / "tiny/checkpoints/epoch-002.safetensors"
    return call("predict", "--ckpt", ckpt, *arguments, "--json", work / "out/p.json")


def answered(work: Path) -> list[Any]:
    """Read the answers with their probabilities."""
    found = []
    for one in load_json(work / "out/p.json")["predictions"]:
        answers = [(each["answer"], round(each["probability"], 4)) for each in one["answers"]]
        found.append((Path(one["image"]).name, one["question"], answers))
    return found


def _without_plain(way: Mutator, random: Random, folder: Path) -> Mutation:
    """Change a picture whose plain form, of an earlier change, holds no longer."""
    (folder / PLAIN).unlink(missing_ok=True)
    return way(random, folder)


class Pictures(Surface):
    """One picture, of any form, that ``predict`` is asked about."""

    name = "pictures"
    file = "p.png"

    def build(self) -> None:
        """Copy a drawn picture that is not symmetric."""
        (self.base / "in").mkdir()
        picture = Image.open(small_run().picture).convert("RGB")
        picture.paste((200, 200, 20), (0, 0, 20, 9))
        picture.save(self.base / "in" / self.file)

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes and chunks; other forms of the same picture, and other pictures."""

        def bytes_of(random: Random, folder: Path) -> Mutation:
            return damage_bytes(random, folder / self.file)

        def replaced(random: Random, folder: Path) -> Mutation:
            return replace_file(random, folder / self.file)

        forms = (self._form, self._form, self._turned, self._turned, self._gray, self._damaged_form, self._damaged_form)
        ways = (bytes_of, bytes_of, replaced, *forms, self._odd, self._chunks, self._bomb)
        return tuple(partial(_without_plain, way) for way in ways)

    def _form(self, random: Random, folder: Path) -> Mutation:
        """Write the same pixels in another format or mode."""
        path = folder / self.file
        picture = upright(path)
        format, mode = random.choice((
            ("BMP", "RGB"), ("TIFF", "RGB"), ("PPM", "RGB"), ("WEBP", "RGB"), ("PNG", "P"), ("GIF", "P"),
            ("PNG", "RGBA"),
            ("TIFF", "RGBA"), ("TGA", "RGB"), ("PCX", "RGB"), ("ICO", "RGBA"), ("SGI", "RGB"), ("DDS", "RGBA"),
            ("TIFF", "P"),
        ))  # fmt: skip
        changed = picture.quantize(256, dither=Image.Dither.NONE) if mode == "P" else picture.convert(mode)
        options: dict[str, Any] = {"WEBP": {"lossless": True}, "ICO": {"sizes": [picture.size]}}.get(format, {})
        if format == "TIFF":
            options = {"compression": random.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))}
        changed.save(path, format, **options)
        return Mutation(f"as {format} {mode} {options.get('compression') or ''}", Effect.NONE)

    def _turned(self, random: Random, folder: Path) -> Mutation:
        """Turn the pixels, and say so as cameras do."""
        path = folder / self.file
        picture = upright(path)
        orientation = random.randrange(1, 9)
        turned = picture.transpose(UNDONE[orientation]) if orientation in UNDONE else picture
        exif = Image.Exif()
        exif[0x0112] = orientation
        format = random.choice(("PNG", "WEBP", "TIFF"))
        turned.save(path, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")), np.asarray(picture))
        return Mutation(f"{format} turned by EXIF {orientation}", Effect.NONE)

    def _gray(self, random: Random, folder: Path) -> Mutation:
        """Write gray in other depths; the same gray in eight bits is what it should look like."""
        path = folder / self.file
        gray = upright(path).convert("L")
        gray.info.clear()  # a clear color of the picture before would be saved again
        kind = random.choice(("16 bits", "16 bits TIFF", "L", "LA", "1 bit", "16 bits with alpha"))
        if kind.startswith("16 bits") and not kind.endswith("alpha"):
            deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
            deep.save(path, "TIFF" if kind.endswith("TIFF") else "PNG")
        elif kind.endswith("alpha"):
            values = (np.asarray(gray).astype(">u2") * 257)[..., None]
            rows = np.concatenate([values, np.full_like(values, 65535)], axis=-1)
            data = b"".join(b"\0" + row.tobytes() for row in rows)
            head = struct.pack(">IIBBBBB", *gray.size, 16, 4, 0, 0, 0)
            path.write_bytes(
                b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
            )
        elif kind == "1 bit":
            gray = gray.convert("1")
            gray.save(path)
        else:
            gray.convert(kind).save(path)
        gray.convert("RGB").save(folder / PLAIN)
        return Mutation(f"gray {kind}")

    def _damaged_form(self, random: Random, folder: Path) -> Mutation:
        """Damage the bytes of another format, whose reader may raise anything."""
        path = folder / self.file
        picture = upright(path)
        format = random.choice(
            ("JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000")
        )
        exif = Image.Exif()
        exif[0x0112], exif[0x9003] = 6, "2020"
        picture.save(path, format, **({"exif": exif} if format in ("JPEG", "WEBP", "TIFF") else {}))
        return Mutation(f"{format} {damage_bytes(random, path).what}")

    def _odd(self, random: Random, folder: Path) -> Mutation:
        """Draw a picture of an odd shape or mode."""
        path = folder / self.file
        kind = random.choice(
            ("1x1", "wide", "CMYK", "float", "animated", "transparent", "int", "empty palette", "YCbCr", "LAB")
        )
        size = {"1x1": (1, 1), "wide": (6000, 1)}.get(kind, (30, 20))
        mode = {"CMYK": "CMYK", "float": "F", "int": "I", "YCbCr": "YCbCr", "LAB": "LAB"}.get(kind, "RGB")
        picture = Image.new(mode, size)
        if kind == "animated":
            picture.save(path, "GIF", save_all=True, append_images=[Image.new("RGB", size, "red")] * 3)
        elif kind == "transparent":
            Image.new("RGBA", size, (255, 0, 0, 0)).save(path)
        elif kind == "empty palette":
            Image.new("P", size).save(path, transparency=0)
        else:
            picture.save(path, "PNG" if mode == "RGB" else "JPEG" if mode in ("CMYK", "YCbCr") else "TIFF")
        return Mutation(f"picture {kind}")

    def _chunks(self, random: Random, folder: Path) -> Mutation:
        """Add or change chunks of a PNG file, with right checksums."""
        path = folder / self.file
        kind = random.choice(("text", "huge text", "header", "color type", "no end", "gamma", "profile", "exif"))
        picture = upright(path)
        if kind in ("text", "huge text"):
            info = PngInfo()
            info.add_text("comment", "x" * (10 if kind == "text" else 80_000_000), zip=True)
            picture.save(path, pnginfo=info)
            return Mutation(f"chunk {kind}", Effect.NONE if kind == "text" else Effect.ANY)
        picture.save(path)
        content = path.read_bytes()
        head = bytearray(content[16:29])
        extra = b""
        if kind == "header":
            head[random.randrange(13)] ^= random.choice((1, 2, 128, 255))
        elif kind == "color type":
            head[8:10] = random.choice((b"\x10\x02", b"\x01\x03", b"\x08\x07", b"\x10\x04"))
        elif kind == "gamma":
            extra = chunk(b"gAMA", struct.pack(">I", random.choice((0, 1, 2**31))))
        elif kind == "profile":
            extra = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"nonsense"))
        elif kind == "exif":
            extra = chunk(
                b"eXIf", random.choice((b"", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12", b"nonsense"))
            )
        rest = content[33:] if kind != "no end" else content[33:-12]
        path.write_bytes(content[:8] + chunk(b"IHDR", bytes(head)) + extra + rest)
        return Mutation(f"chunk {kind}")

    def _bomb(self, random: Random, folder: Path) -> Mutation:
        """Promise more pixels than anybody has memory for."""
        side = random.choice((9_000, 20_000, 100_000, 2**31 - 1))
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        data = chunk(b"IDAT", zlib.compress(bytes(10_000)))
        (folder / self.file).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b""))
        return Mutation(f"picture of {side} x {side}", Effect.REFUSED)

    def run(self, work: Path, random: Random) -> Ran:
        """Ask about it."""
        return ask(work, "--image", work / "in" / self.file, "--question", "what color is the shape?")

    def value(self, work: Path, ran: Ran) -> object:
        """Give the answers."""
        return answered(work)

    def expected(self, work: Path) -> object:
        """Ask about the same picture in its plainest form, where there is one."""
        if not (work / "in" / PLAIN).exists():
            return UNKNOWN
        folder = work / "plain"
        (folder / "in").mkdir(parents=True)
        (folder / "out").mkdir()
        shutil.copyfile(work / "in" / PLAIN, folder / "in" / self.file)
        return answered(folder) if self.run(folder, Random(0)).code == 0 else UNKNOWN

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that the JSON is whole."""
        return half_json(work / "out/p.json", ran)


def upright(path: Path) -> Image.Image:
    """Open a picture as it should look."""
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def chunk(kind: bytes, data: bytes) -> bytes:
    """Write a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class PreparedPictures(Pictures):
    """The same picture among those that are prepared."""

    name = "pictures-prepared"
    file = "train/images/1.png"
    in_minute = 15

    def build(self) -> None:
        """Draw a few pictures."""
        make_raw(self.base / "in", num_train=3, num_test=2)

    def run(self, work: Path, random: Random) -> Ran:
        """Prepare."""
        return call("prepare", "easy-vqa", "--raw", work / "in", "--out", work / "out/p", "--vectors", "none")

    def value(self, work: Path, ran: Ran) -> object:
        """Read the features."""
        features = open_prepared(work / "out/p").features
        return np.round(features.read(np.arange(features.num_images)).astype(np.float64), 2).tolist()

    def expected(self, work: Path) -> object:
        """Prepare the same picture in its plainest form, where there is one."""
        if not (work / "in" / PLAIN).exists():
            return UNKNOWN
        folder = work / "plain"
        shutil.copytree(work / "in", folder / "in")
        (folder / "out").mkdir()
        shutil.copyfile(work / "in" / PLAIN, folder / "in" / self.file)
        ran = self.run(folder, Random(0))
        return self.value(folder, ran) if ran.code == 0 else UNKNOWN

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that a refused preparation leaves no manifest."""
        return "refused, but a manifest was written" if ran.code and (work / "out/p/manifest.json").exists() else ""


class ExtractedPictures(PreparedPictures):
    """The same picture in a folder of pictures."""

    name = "pictures-extracted"
    in_minute = 15

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Do the same; but no table misses a picture that is gone."""

        def may_be_gone(way: Mutator, random: Random, folder: Path) -> Mutation:
            done = way(random, folder)
            return done if (folder / self.file).is_file() else replace(done, effect=Effect.ANY)

        return tuple(partial(may_be_gone, way) for way in super().mutators)

    def run(self, work: Path, random: Random) -> Ran:
        """Extract."""
        options = ("--extractor", "patches", "--grid", "2", "--gpus", "cpu", "--out", work / "out/p")
        return call("extract", work / "in/train/images", *options)

    def value(self, work: Path, ran: Ran) -> object:
        """Read the features."""
        files = sorted((work / "out/p").glob("*.npy"))
        return [np.round(np.load(path).astype(np.float64), 2).tolist() for path in files]

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that no file of features is half-written, and that nothing else is left."""
        pictures = [path for path in (work / "in/train/images").glob("*.png") if path.is_file()]
        expected = {"backbone.json", *(f"{path.name}.npy" for path in pictures)}
        found = {path.name for path in (work / "out/p").glob("*")} if (work / "out/p").is_dir() else set()
        if found != expected and (ran.code == 0 or not found <= expected):
            return f"{sorted(found)} with exit code {ran.code}"
        return "left behind" if [*(work / "out").rglob(".un*")] else ""


class Tables(Surface):
    """Tables of pictures and questions for ``predict --batch``."""

    name = "tables"
    file: ClassVar[str] = "q.csv"

    def build(self) -> None:
        """Write a table of four questions about two pictures."""
        (self.base / "in").mkdir()
        for number in (0, 1):
            shutil.copyfile(small_run().raw / f"test/images/{number}.png", self.base / f"in/{number}.png")
        rows = [
            ("0.png", "what color is the shape?"),
            ("1.png", 'is it "red", or blue?'),
            ("1.png", "what shape"),
            ("0.png", "is"),
        ]
        self.write(self.base / "in" / self.file, rows)

    @staticmethod
    def write(path: Path, rows: Sequence[tuple[str, str]], **form: Any) -> None:
        """Write the table."""
        text = io.StringIO()
        writer = csv.writer(text, **form)
        writer.writerows([("image", "question"), *rows])
        path.write_text(text.getvalue(), newline="")

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes, and other ways to write tables."""
        return (
            lambda random, folder: damage_bytes(random, folder / self.file),
            lambda random, folder: damage_bytes(random, folder / self.file),
            lambda random, folder: replace_file(random, folder / self.file),
            *(self._form, self._form, self._form, self._row, self._row, self._row),
        )

    def _form(self, random: Random, folder: Path) -> Mutation:
        path = folder / self.file
        if not path.is_file():
            return Mutation("nothing")
        text = path.read_bytes().decode("utf-8", "replace")
        kind = random.choice(("BOM", "LF", "quoted", "more columns", "order", "no last line end", "UTF-16",
                              "semicolons",
                              "tabs", "Latin-1", "no header", "upper case header", "spaces in header", "blank lines",
                              "header twice"))  # fmt: skip
        if not text.startswith("image,question\r\n") and not text.startswith("image,question\n"):
            return Mutation("nothing", Effect.NONE)  # it has another form already
        rows = list(csv.reader(io.StringIO(text)))[1:]
        pairs = [(row[0], row[1]) for row in rows if len(row) == 2]
        effect = Effect.NONE
        encoding = "utf-8"
        if kind == "BOM":
            encoding = "utf-8" if text.startswith("\ufeff") else "utf-8-sig"
        elif kind == "LF":
            self.write(path, pairs, lineterminator="\n")
        elif kind == "quoted":
            self.write(path, pairs, quoting=csv.QUOTE_ALL)
        elif kind == "no last line end":
            text = text.rstrip("\r\n")
        elif kind == "UTF-16":
            encoding, effect = "utf-16", Effect.ANY
        elif kind == "Latin-1":
            text, encoding, effect = text.replace("color", "col\u00f6r"), "latin-1", Effect.ANY
        elif kind in ("semicolons", "tabs"):
            self.write(path, pairs, delimiter=";" if kind == "semicolons" else "\t")
            effect = Effect.ANY
        elif kind == "no header":
            text, effect = "".join(text.splitlines(keepends=True)[1:]), Effect.REFUSED
        elif kind in ("upper case header", "spaces in header"):
            header = "Image,Question" if kind.startswith("upper") else "image, question"
            text, effect = text.replace("image,question", header, 1), Effect.ANY
        elif kind == "header twice":
            text, effect = "image,question\n" + text, Effect.ANY
        elif kind == "blank lines":
            text = text.replace("\n", "\n\r\n", 2)
        else:
            order = ("question", "image") if kind == "order" else ("id", "image", "note", "question")
            out = io.StringIO()
            csv.writer(out).writerows(
                [order, *([{"image": a, "question": q}.get(name, "1") for name in order] for a, q in pairs)]
            )
            text = out.getvalue()
        if kind not in ("LF", "quoted", "semicolons", "tabs"):
            path.write_bytes(text.encode(encoding, "replace"))
        return Mutation(f"table with {kind}", effect)

    def _row(self, random: Random, folder: Path) -> Mutation:
        path = folder / self.file
        odd = random.choice((
            "0.png", "0.png,what,more", "nowhere.png,what", ",what", "0.png,", "0.png, ", "../../x,what",
            "/etc/passwd,what",
            "0.png,!?", '"0.png,what', '0.png,"a\nb"', "0.png,\u00fc\U0001f600", "0.png,\x00", "0.png," + "x " * 20_000,
            "0.png," + "x" * 200_000, ".,what", "\x1b[31m.png,what", "q.csv,what", "0.png,'=cmd()", " 0.png,what",
        ))  # fmt: skip
        if path.is_file():
            with path.open("a", newline="") as file:
                file.write(odd + "\r\n")
        return Mutation(f"row {odd:.30}")

    def run(self, work: Path, random: Random) -> Ran:
        """Ask all of it."""
        return ask(work, "--batch", work / "in" / self.file)

    def value(self, work: Path, ran: Ran) -> object:
        """Give pictures, questions and answers."""
        return answered(work)

    def expected(self, work: Path) -> object:
        """Read the table with the csv module; the answers are the sound table's, where it asks the same."""
        try:
            pairs = self.plain(work / "in" / self.file)
        except (OSError, ValueError, LookupError, TypeError, csv.Error):
            return "a plain reader cannot read this"
        assert isinstance(self.sound, list)
        known = {(image, question): answers for image, question, answers in self.sound}
        given = {(image, question): answers for image, question, answers in answered(work)}
        return [
            (image, question, known.get((image, question), given.get((image, question)))) for image, question in pairs
        ]

    def plain(self, path: Path) -> list[tuple[str, str]]:
        """Read pictures and questions; or raise."""
        text = marked_text(path)
        header = text.splitlines()[0]
        delimiter = next((one for one in (",", ";", "\t") if one in header), ",")
        names, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = [name.strip().lower() for name in names]
        image, question = names.index("image"), names.index("question")
        return [(Path(row[image].strip()).name, row[question]) for row in rows if row]

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that the JSON is whole."""
        return half_json(work / "out/p.json", ran)


class JsonTables(Tables):
    """The same as JSON lines."""

    name = "tables-jsonl"
    file = "q.jsonl"

    @staticmethod
    def write(path: Path, rows: Sequence[tuple[str, str]], **form: Any) -> None:
        """Write the table."""
        path.write_text("".join(json.dumps({"image": image, "question": question}) + "\n" for image, question in rows))

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes and lines."""

        def line(random: Random, folder: Path) -> Mutation:
            path = folder / self.file
            if not path.is_file():
                return Mutation("nothing")
            lines = path.read_bytes().splitlines(keepends=True)
            at = random.randrange(len(lines) + 1)
            kind = random.choice(
                ("blank", "no object", "no image", "number", "cut", "more", "odd name", "twice", "CR LF")
            )
            new = {
                "blank": b"\n",
                "no object": b"[1]\n",
                "no image": b'{"question": "is"}\n',
                "cut": b'{"image": "0.p',
                "number": b'{"image": 3, "question": "is"}\n',
                "more": b'{"image":"0.png","question":"is","x":{}}\n',
                "odd name": b'{"image": "\\u0000", "question": "is"}\n',
                "twice": b'{"image":"0.png","image":"1.png","question":"is"}\n',
            }.get(kind)
            if new is not None:
                lines.insert(at, new)
            text = b"".join(lines)
            path.write_bytes(text.replace(b"\n", b"\r\n") if kind == "CR LF" else text)
            effect = Effect.NONE if kind in ("blank", "CR LF") else Effect.ANY
            return Mutation(f"line {kind}", Effect.REFUSED if kind in ("no object", "no image", "number") else effect)

        ways = (damage_bytes, damage_bytes, replace_file, odd_json)
        return (*(lambda random, folder, way=way: way(random, folder / self.file) for way in ways), *[line] * 5)

    def plain(self, path: Path) -> list[tuple[str, str]]:
        """See ``Tables``."""
        lines = marked_text(path).splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return [(Path(row["image"]).name, row["question"]) for row in rows]


SURFACES = (Pictures, PreparedPictures, ExtractedPictures, Tables, JsonTables)
