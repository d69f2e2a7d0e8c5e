"""Every task of phase two on real data: fine-tuning over seeds from several starts, beside a simple
baseline; a table in markdown.

    python benchmarks/tasks.py --data DATA --out runs/tasks --start masked=runs/bert \
        --start minilm=all-MiniLM-L6-v2 pos relations

The rows stand in `tasks.yaml`; each is the shipped config with a few settings changed, run by
`transfer`. Starts that a row does not name are not used in it, and a row none of whose starts is
given is left out. What is finished in `--out` is not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import yaml
from baselines import BASELINES

from ptft_lightning.report.intervals import mean

HERE = Path(__file__).parent


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="names in tasks.yaml; default: all")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", action="append", required=True, help="NAME=PATH")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", help="instead of the row's")
    parser.add_argument("--baseline_only", action="store_true")
    return parser.parse_args()


def text_of(file: Path) -> Any:
    return fsspec.open(str(file), "rt", encoding="utf-8", compression="infer")


def units(file: Path) -> Iterator[str]:
    """Lines, or blocks of lines in CoNLL's formats."""
    with text_of(file) as stream:
        if not is_blocks(file):
            yield from stream
            return
        block: list[str] = []
        for line in stream:
            block.append(line)
            if not line.strip():
                yield "".join(block)
                block = []
        yield "".join(block)


def is_blocks(file: Path) -> bool:
    name = file.name.removesuffix(".gz")
    return name.endswith((".conll", ".conllu", ".bmes", ".txt")) or "panx" in str(file)


def part_of_squad(file: Path, first: int, last: int) -> str:
    """Some questions of all articles."""
    with text_of(file) as stream:
        data = json.load(stream)
    flat = [
        (a, p, q)
        for a, article in enumerate(data["data"])
        for p, paragraph in enumerate(article["paragraphs"])
        for q in range(len(paragraph["qas"]))
    ]
    random.Random(0).shuffle(flat)
    wanted = set(flat[first:last])
    for a, article in enumerate(data["data"]):
        for p, paragraph in enumerate(article["paragraphs"]):
            paragraph["qas"] = [x for q, x in enumerate(paragraph["qas"]) if (a, p, q) in wanted]
        article["paragraphs"] = [x for x in article["paragraphs"] if x["qas"]]
    return json.dumps(data, ensure_ascii=False)


def part(data: Path, out: Path, given: str | list[Any], header: bool) -> Path:
    """The file itself, or a part of it in random order, written to `out`."""
    if isinstance(given, str):
        return data / given
    source, first, last = data / given[0], *given[1:]
    name = given[0].replace("/", "_").removesuffix(".gz")
    folder = out / "parts" / f"{first}-{last}"
    folder.mkdir(parents=True, exist_ok=True)
    if ".json" in source.suffixes:
        (folder / name).write_text(part_of_squad(source, first, last), encoding="utf-8")
        return folder / name
    siblings = [source]
    if source.name.startswith("seq.in"):
        name = "seq.in"
        siblings = [source, source.with_name(source.name.replace("seq.in", "seq.out"))]
    for file in siblings:
        rows = list(units(file))
        top, rows = (rows[:1], rows[1:]) if header else ([], rows)
        random.Random(0).shuffle(rows)  # alike for files of one length; some are sorted by label
        kept = [*top, *rows[first:last]]
        (folder / name.replace("seq.in", file.name.removesuffix(".gz"))).write_text(
            "".join(kept), encoding="utf-8"
        )
    return folder / name


def overlay(row: dict[str, Any], files: dict[str, Path], epochs: int, out: Path) -> Path:
    """The row's config: the shipped one with other files, length and settings."""
    config = yaml.safe_load((HERE.parent / "configs" / "finetune" / row["config"]).read_text())
    config["run_dir"] = str(out / "run")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    data |= {name: str(path) for name, path in files.items()}
    if "columns" in row:
        data["columns"] = row["columns"]
    config["trainer"] |= {"max_epochs": epochs, "enable_progress_bar": False}
    config["trainer"] |= {"accelerator": "cpu", "precision": "32-true"}
    config.pop("early_stopping", None)
    for name, value in row.get("set", {}).items():
        put({"model": model, "data": data, "trainer": config["trainer"]}, name.split("."), value)
    file = out / "config.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return file


def put(tree: Any, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        if isinstance(tree.get(name), str):
            tree[name] = {"class_path": tree[name]}
        tree = tree.setdefault(name, {})
        if "class_path" in tree:
            tree = tree.setdefault("init_args", {})
    tree[path[-1]] = value


def baselines(kind: str, config: Path, tests: dict[str, Path], labels: str) -> Iterator[str]:
    settings = yaml.safe_load(config.read_text())
    if not tests:
        yield BASELINES[kind](settings, labels)
    for name, file in tests.items():
        settings["data"]["init_args"]["test"] = str(file)
        yield f"{name}: {BASELINES[kind](settings, labels)}\n"


def measure(name: str, row: dict[str, Any], start: str, args: argparse.Namespace) -> None:
    out = args.out / name / start
    out.mkdir(parents=True, exist_ok=True)
    header = row.get("header", False)
    tests = row.get("tests", {"test": row.get("test")})
    files = {}
    for kind, given in {"train": row["train"], "validation": row["validation"], **tests}.items():
        for other in row.get("beside", []):  # the other language, read with the first
            of = yaml.safe_load(json.dumps(given).replace(*other))
            part(args.data, out.parent, of, header)
        files[kind] = part(args.data, out.parent, given, header)
    named = {name: files.pop(name) for name in tests} if "tests" in row else {}
    config = overlay(row, files, row["starts"][start]["epochs"], out)
    labels = str(args.labels or row["starts"][start]["labels"])
    said = out / "baseline.txt"
    if not said.exists():
        said.write_text("".join(baselines(row["baseline"], config, named, labels)))
    print(f"## {name} from {start}, {labels} labels\nbaseline: {said.read_text()}", flush=True)
    if args.baseline_only:
        return
    path = dict(word.split("=", 1) for word in args.start)[start]
    words = ["--config", str(config), "--start", f"{start}={path}", "--labels", labels]
    words += ["--seeds", str(args.seeds), "--output", str(out / "transfer")]
    for test, file in named.items():
        words += ["--test", f"{test}={file}"]
    subprocess.run([sys.executable, "-m", "ptft_lightning", "transfer", *words], check=False)


def table(out: Path) -> Iterator[str]:
    """Markdown: what is finished in `out`."""
    yield "| row | from | labels | test | by seed | mean | baseline |"
    yield "|---|---|---|---|---|---|---|"
    for file in sorted(out.glob("*/*/transfer/transfer.csv")):
        name, start = file.parts[-4:-2]
        said = (file.parents[1] / "baseline.txt").read_text().strip().replace("\n", "; ")
        with open(file, newline="") as stream:
            lines = list(csv.DictReader(stream))
        for labels, test in dict.fromkeys((line["labels"], line["test"]) for line in lines):
            mine = [line for line in lines if (line["labels"], line["test"]) == (labels, test)]
            found = mean([float(line["value"]) for line in mine])
            each = " ".join(f"{float(line['value']):.3f}" for line in mine)
            shown = f"{found.value:.3f} +- {found.spread:.3f}"
            yield f"| {name} | {start} | {labels} | {test} | {each} | {shown} | {said} |"


def run() -> None:
    args = options()
    rows = yaml.safe_load((HERE / "tasks.yaml").read_text())
    given = [word.split("=", 1)[0] for word in args.start]
    for name in args.rows or rows:
        for start in rows[name]["starts"]:
            if start in given:
                measure(name, rows[name], start, args)
    print("\n".join(table(args.out)))


if __name__ == "__main__":
    run()
