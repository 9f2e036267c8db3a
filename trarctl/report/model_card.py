"""The model card of an exported folder: what a model was trained on, what it scores, how it is loaded.

It is Markdown with a head in YAML, as model hubs read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from trarctl.config.settings import Settings, from_dict, to_text
from trarctl.engine.checkpoint import Description
from trarctl.engine.export import INPUTS, ONNX, OUTPUTS, PT2, TO_FILL_IN
from trarctl.errors import listed

_TASK = "visual-question-answering"
_RECIPE = (
    *("num_layers", "hidden_size", "num_heads", "grid_size", "spans", "routing", "pooling", "binarize"),
    *("batch_size", "accumulation", "learning_rate", "decay_epochs", "decay_factor", "warmup_epochs", "loss", "seed"),
)


def model_card(description: Description, files: Sequence[str]) -> str:
    """Write the model card of a folder with these files."""
    parts = [_head(description), _title(description), _data(description), _scores(description), _recipe(description)]
    parts += [_use(description), _loading(description, files), _citation()]
    return "\n".join(parts)


def _head(description: Description) -> str:
    name = description.data_name
    head: dict[str, Any] = {
        "library_name": "trarctl",
        "pipeline_tag": _TASK,
        "language": ["en"],
        "tags": ["trar", "vqa", re.sub(r"[^a-z0-9.-]+", "-", name.lower())],
    }
    if description.accuracy is not None:
        accuracy = description.accuracy
        values = {"accuracy": accuracy["overall"]}
        values |= {f"accuracy, {kind}": value for kind, value in accuracy["per_type"].items()}
        dataset = {"type": head["tags"][-1], "name": name, "split": accuracy.get("split", "val")}
        metrics = [{"type": "accuracy", "name": label, "value": value} for label, value in values.items()]
        result = {"task": {"type": _TASK}, "dataset": dataset, "metrics": metrics}
        head |= {"metrics": ["accuracy"], "model-index": [{"name": description.run, "results": [result]}]}
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{TO_FILL_IN}\n{text}---\n"


def _title(description: Description) -> str:
    return (
        f"# {_plain(description.run)}\n\nA TRAR model: a Transformer that answers questions about pictures, and routes"
        f" each picture through attention spans of different sizes.\nIt chooses one of {len(description.answers):,}"
        f" answers. It was trained on {_plain(description.data_title)}.\n"
    )


def _data(description: Description) -> str:
    trained = description.trained_on
    lines = [f"- data: {_plain(description.data_title)} (`{description.data_name}`)"]
    if trained is not None and trained.questions is not None:
        lines.append(f"- trained on: {trained.questions:,} questions of `{trained.split}`")
    known = f"{len(description.vocabulary):,} words, questions of up to {description.max_words} words"
    lines.append(f"- words: {known}")
    grid = _settings(description).model.grid_size
    by = "made elsewhere: by what, the data does not say"
    if description.backbone is not None:
        by = f"made by the extractor `{description.backbone}`"
    lines.append(f"- picture features: {grid} x {grid} cells of {description.feature_width:,} numbers, {by}")
    if (weights := (description.extractor or {}).get("weights")) is not None:
        lines.append(f"- weights of the extractor: `{weights}`")
    if description.vectors is not None:
        lines.append(f"- word vectors: {_plain(description.vectors['source'])}")
    lines.append(f"- answers: {_plain(listed(list(map(repr, description.answers)), most=20))}")
    return "## Data\n\n" + "\n".join(lines) + "\n"


def _scores(description: Description) -> str:
    accuracy = description.accuracy
    if accuracy is None:
        again = "`trarctl eval --ckpt FOLDER --data DIR` measures it"
        return f"## Accuracy\n\nNothing was measured when this checkpoint was saved: {again}.\n"
    baselines: Mapping[str, Any] = accuracy.get("baselines", {})
    questions = f"{accuracy['questions']:,} questions" if "questions" in accuracy else "the questions"
    split, evaluator = accuracy.get("split", "val"), accuracy["evaluator"]
    told = f"On {questions} of `{split}`, by the evaluator `{evaluator}`, in percent."
    if "question alone" in baselines:
        told += " *Question alone* answers without the picture: the commonest training answer to the same words."
    kind = "question type" if description.trained_on is None else description.trained_on.type_label
    rows = [[kind, "accuracy", *baselines], ["---", *["---:"] * (1 + len(baselines))]]
    for name in sorted(accuracy["per_type"]):
        rows.append([name, *(_percent(one["per_type"].get(name)) for one in (accuracy, *baselines.values()))])
    rows.append(["**overall**", *(_percent(one["overall"]) for one in (accuracy, *baselines.values()))])
    table = "\n".join("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows)
    return f"## Accuracy\n\n{told}\n\n{table}\n"


def _recipe(description: Description) -> str:
    settings = _settings(description)
    is_ours = description.progress.step > 0  # the original's checkpoints do not say how they were trained
    parts = {**settings.model.model_dump(), **settings.train.model_dump()}
    keys = [key for key in _RECIPE if is_ours or key in settings.model.model_dump()]
    rows = "\n".join(f"| `{key}` | {to_text(parts[key])} |" for key in keys)
    done = f"Saved after epoch {description.progress.epoch}{f' of {settings.train.epochs}' if is_ours else ''}"
    average = {"ema": "a moving average of the weights", "average": "the average of the last epochs' weights"}
    averaged = f", {average[description.candidate]}" if description.candidate else ""
    where = f"trarctl {description.trarctl}, torch {description.torch}"
    precision = f", in {description.precision}" if description.precision else ""
    head = f"{done}{averaged}{precision}; written by {where}. All settings are in `config.json`."
    return f"## Recipe\n\n{head}\n\n| setting | value |\n| --- | --- |\n{rows}\n"


def _use(description: Description) -> str:
    few = _plain(listed(list(map(repr, description.answers)), most=8))
    return f"""## Intended use

Research on visual question answering, and questions like those of the training data about pictures like its pictures.

## Limits

- It can only give answers of its list: {few}.
- It answers every question, also one that the picture cannot answer, and one about a picture of another kind.
- It knows only the words of its training questions; others count as unknown. It reads the first
  {description.max_words} words of a question.
- A probability is the model's own, and not calibrated.
- Whatever is wrong or one-sided in the training data is learned with it. It is not for decisions about people.
"""


def _loading(description: Description, files: Sequence[str]) -> str:
    shape = description.max_words, _settings(description).model.grid_size ** 2, description.feature_width
    text = f"""## How to load it

```bash
pip install "trarctl[features]"
trarctl predict --ckpt FOLDER --image photo.jpg --question "what is it?"
trarctl eval --ckpt FOLDER --data data/{description.data_name}/prepared
trarctl train DATASET --init FOLDER
```

```python
from PIL import Image
from trarctl import api

predictor = api.open_predictor("FOLDER")
print(predictor.ask([Image.open("photo.jpg")], ["what is it?"])[0].answers)
```
"""
    if ONNX in files:
        text += f"""
`{ONNX}` takes `{INPUTS[0]}` (int64, [B, {shape[0]}], 0 after the last word) and `{INPUTS[1]}` (float32,
[B, {shape[1]}, {shape[2]}]), and gives `{OUTPUTS[0]}`, the logits of the answers, and `{OUTPUTS[1]}`, the share of each
attention span in each layer. Words and answers are in `config.json`, in the order of their indices.
"""
    if PT2 in files:
        text += f"\n`{PT2}` is the same for `torch.export.load`, without trarctl.\n"
    return text


def _citation() -> str:
    return """## Source

Zhou et al., *TRAR: Routing the Attention Spans in Transformer for Visual Question Answering*, ICCV 2021.
"""


def _settings(description: Description) -> Settings:
    return from_dict(description.settings, "the checkpoint")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _plain(text: object) -> str:
    """A text of the data's as Markdown that shows it as it is: no links, no HTML, one line."""
    return re.sub(r"([\\`\[\]<>|])", r"\\\1", " ".join(str(text).split())).replace("\\<", "&lt;").replace("\\>", "&gt;")
