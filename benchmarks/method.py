"""How well `update.solver: auto` does on real features: the tables of docs/method.md.

    python -m benchmarks.method              # the pools of role report: an hour of CPU, once `benchmarks.pools` are made
    python -m benchmarks.method --role fresh # those that were made last; others' lines stay
    python -m benchmarks.method --pools four-96 five-95
    python -m benchmarks.method --auto       # measure solver auto anew and leave the rest: a quarter of an hour
    python -m benchmarks.method --docs       # write what was measured into docs/method.md, tables and curves

Constants of `stages.identify` and of the modules of solver auto (`attributes`, `mixture`, `retraining`, `evidence`, `auto`)
were chosen on the pools of role "tune"; what prompted each is told in docs/method-choices.md. The tables tell roles apart.
Group labels are read for scoring and by the oracles: "oracle" is the regression in which every true group weighs the same,
"own oracle" that of `auto`, in which rare groups weigh more, with the true groups. One JSON line per set in
benchmarks/results/method.jsonl.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.pools import POOLS, REPOSITORY, Pool
from benchmarks.sets import Drawn, FeatureSet, draw
from stages import baselines
from stages.auto import EVENED, PLAIN, repair
from stages.evidence import Evidence
from stages.identify import identify
from stages.logistic import RARITY, fit, folds, held_out, moments
from stages.passes import predict
from stages.retraining import group_balanced, likelihood, retrain

DOCS = REPOSITORY / "docs/method.md"
# Before and after what is written into the page: the summary, and the tables.
SUMMARY = ("<!-- summary: written by python -m benchmarks.method --docs -->", "<!-- end of summary -->")
RESULTS_TABLES = ("<!-- results: written by python -m benchmarks.method --docs -->", "<!-- end of results -->")
RESULTS = REPOSITORY / "benchmarks/results/method.jsonl"
PUBLISHED = ((10, 500), (350, 110), (1200, 1500))
SEEDS = (0, 1, 2)
# In the order of the tables.
ROLES = ("report", "fresh", "tune")
# What tells one line from another.
KEY = ("part", "pool", "val_bias", "size", "noise", "imbalance", "seed")
# A base head that is this much worse on test samples whose attribute contradicts the class is biased; scoring only.
GAP = 0.1


def sets() -> list[tuple[str, FeatureSet]]:
    """(part, set): the main table, sweeps of label noise, size, class imbalance and bias, and the pools with a shape."""
    chosen: list[tuple[str, FeatureSet]] = []
    for pool in POOLS:
        if pool.shape is not None:
            chosen += [("shapes", FeatureSet(pool, pool.bias, 0, seed)) for seed in SEEDS]
            continue
        size, even = _size(pool), 1 / len(pool.classes)
        biases = (even, 0.9, 0.95, 0.98) if pool.biased else (even,)
        chosen += [("main", FeatureSet(pool, bias, size, seed)) for bias in biases for seed in SEEDS]
        if not pool.biased:
            # A validation split that is biased though the model is not.
            chosen += [("val bias alone", FeatureSet(pool, bias, size, seed)) for bias in (0.8, 0.95) for seed in SEEDS]
        noisy = 0.9 if pool.biased else even
        chosen += [("noise", FeatureSet(pool, noisy, size, 0, noise)) for noise in (0.05, 0.1, 0.2)]
    named = {pool.name: pool for pool in POOLS}
    for name in ("tshirt-dress-99", "coat-shirt-97"):
        chosen += [("size", FeatureSet(named[name], 0.9, n, seed)) for n in (200, 500, 1000, 2000, 3000) for seed in SEEDS]
        chosen += [("bias", FeatureSet(named[name], b, 2000, seed)) for b in (0.6, 0.7, 0.85, 0.97, 0.99) for seed in SEEDS]
        chosen += [("imbalance", FeatureSet(named[name], 0.9, 1600, seed, 0.0, r)) for r in (5, 20) for seed in SEEDS]
    chosen += [("size", FeatureSet(named["ten-95"], 0.9, n, 0)) for n in (2000, 5000, 10000, 20000)]
    return chosen


def _size(pool: Pool) -> int:
    if pool.second:
        return 1200
    if pool.kind == "minilm":
        return 800
    return 1900 if len(pool.classes) == 2 else 3600 if len(pool.classes) < 10 else 4000


def measure(part: str, chosen: FeatureSet) -> dict[str, Any] | None:
    """One line of the results; None where the pool has too few samples of a group for the set."""
    drawn = _drawn(chosen)
    if drawn is None:
        return None
    x, y, classes, base = drawn.features, drawn.labels, drawn.classes, (drawn.weight, drawn.bias)
    line = _named(part, chosen, drawn) | {
        "gap": _gap(drawn), "minority": int((drawn.attributes % classes != y).sum()),
        "erm": drawn.worst_group(*base), "erm_mean": drawn.mean(*base), **_auto(drawn, chosen.seed),
    }  # fmt: skip
    line["last_layer"] = drawn.worst_group(*_last_layer(drawn, chosen.seed))
    scaling = moments(x)
    for name, rarity in (("oracle", 0.0), ("oracle_rare", RARITY)):
        known = group_balanced(x, y, drawn.attributes, classes=classes, scaling=scaling, rarity=rarity, seed=chosen.seed)
        line[name] = drawn.worst_group(known.weight, known.bias)
    if part in ("main", "shapes"):
        for eliminate, update in PUBLISHED:
            head = baselines.published(x, y, base, eliminate_steps=eliminate, update_steps=update, seed=chosen.seed)
            line[f"published {eliminate}/{update}"] = drawn.worst_group(*head)
    if part == "shapes":
        even = group_balanced(x, y, y, classes=classes, scaling=scaling, merit=likelihood, seed=chosen.seed)
        line["class_balanced"] = drawn.worst_group(even.weight, even.bias)
    return _rounded(line)


def _drawn(chosen: FeatureSet) -> Drawn | None:
    """The set, of a smaller size where a group is too small for its own."""
    for share in (1.0, 0.8, 0.6, 0.4):
        try:
            return draw(replace(chosen, size=round(chosen.size * share)))
        except ValueError:
            continue
    return None


def _named(part: str, chosen: FeatureSet, drawn: Drawn) -> dict[str, Any]:
    """What a line says of its set."""
    return {
        "part": part, "pool": chosen.pool.name, "role": chosen.pool.role, "kind": chosen.pool.kind,
        "classes": drawn.classes, "train_bias": chosen.pool.bias, "val_bias": chosen.bias, "size": len(drawn.labels),
        "noise": chosen.noise, "imbalance": chosen.imbalance, "seed": chosen.seed,
    }  # fmt: skip


def _auto(drawn: Drawn, seed: int) -> dict[str, Any]:
    """What a line says of solver auto."""
    x, y, classes, base = drawn.features, drawn.labels, drawn.classes, (drawn.weight, drawn.bias)
    started = time.monotonic()
    repaired = repair(x, y, base, seed=seed)
    seconds = time.monotonic() - started
    new = repaired.retrained
    if new is None or repaired.remedy == PLAIN:
        new = retrain(x, y, identify(x, y, classes=classes).nearest, classes=classes, base=base, seed=seed)
    minority, said = drawn.attributes % classes != y, new.attributes != y
    hits = int((minority & said & (new.attributes == drawn.attributes % classes)).sum())
    checked = repaired
    if drawn.training is not None and repaired.kept is None:
        checked = repair(x, y, base, training=drawn.training, seed=seed)
    # Without a word where the verdict alone has decided.
    evidence = checked.evidence or Evidence(classes=classes)
    return {
        "verdict": repaired.verdict.bias, "verdict_mirror": repaired.verdict.mirror, **vars(evidence),
        "kept": repaired.kept, "remedy": repaired.remedy, "seconds": round(seconds, 2),
        "auto": drawn.worst_group(repaired.weight, repaired.bias), "auto_mean": drawn.mean(repaired.weight, repaired.bias),
        "forced": drawn.worst_group(new.weight, new.bias),
        "checked": None if drawn.training is None else drawn.worst_group(checked.weight, checked.bias),
        "recall": hits / max(1, int(minority.sum())), "precision": hits / max(1, int(said.sum())),
    }  # fmt: skip


def measure_auto(part: str, chosen: FeatureSet) -> dict[str, Any] | None:
    """Of `measure`'s line, what names the set and what is said of solver auto."""
    drawn = _drawn(chosen)
    return None if drawn is None else _rounded(_named(part, chosen, drawn) | _auto(drawn, chosen.seed))


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}


def _gap(drawn: Drawn) -> float:
    """How much worse the base head is on test samples whose attribute contradicts the class."""
    right = predict(drawn.test_features, drawn.weight, drawn.bias) == drawn.test_labels
    agrees = drawn.test_attributes % drawn.classes == drawn.test_labels
    return float(right[agrees].double().mean() - right[~agrees].double().mean())


def _last_layer(drawn: Drawn, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain last-layer retraining, its strength by cross-validated mean accuracy."""
    x, y = drawn.features, drawn.labels
    penalties = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    scaling, weights = moments(x), torch.full((len(y),), 1 / len(y))
    guesses, _ = held_out(x, y, weights, folds(len(y), seed), classes=drawn.classes, penalties=penalties, scaling=scaling)
    merits = [float((logits.argmax(dim=1) == y).double().mean()) for logits in guesses]
    best = penalties[merits.index(max(merits))]
    heads = fit(x, y, weights.unsqueeze(0), classes=drawn.classes, penalty=best, scaling=scaling)
    weight, bias = heads.on_features(scaling)
    return weight[0], bias[0]


def _work(measure: Callable[[str, FeatureSet], dict[str, Any] | None], job: tuple[str, FeatureSet]) -> dict[str, Any] | None:
    torch.set_num_threads(1)
    return measure(*job)


def _lines(
    measure: Callable[[str, FeatureSet], dict[str, Any] | None], jobs: Sequence[tuple[str, FeatureSet]], processes: int
) -> Iterator[dict[str, Any]]:
    """What `measure` gives for the sets, as it comes."""
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        for done, line in enumerate(workers.imap(partial(_work, measure), jobs, chunksize=3)):
            sys.stderr.write(f"\r{done + 1} of {len(jobs)} sets")
            if line is not None:
                yield line


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="write the tables and curves of docs/method.md, measure nothing")
    parser.add_argument("--auto", action="store_true", help="measure solver auto anew in the lines that there are, no more")
    parser.add_argument("--role", choices=(*ROLES, "all"), default="report", help="which pools")
    names = [pool.name for pool in POOLS]
    parser.add_argument(
        "--pools", nargs="+", choices=names, metavar="POOL", help="which pools, by name and of whatever role"
    )
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    chosen = given.pools or [pool.name for pool in POOLS if given.role in ("all", pool.role)]
    # Neighbours share a pool, which a worker then loads once.
    jobs = sorted(
        (job for job in sets() if job[1].pool.name in chosen), key=lambda job: (job[1].pool.role, job[1].pool.name)
    )
    known = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if given.auto:
        by_key = {tuple(line[key] for key in KEY): line for line in known}
        for line in _lines(measure_auto, jobs, given.processes):
            if (key := tuple(line[name] for name in KEY)) in by_key:
                by_key[key] |= line
        given.out.write_text("".join(json.dumps(line) + "\n" for line in known))
    elif not given.docs:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        # Beside it until all are measured: a run that is cut off takes no line away.
        measured = given.out.with_name(f"{given.out.name}.part")
        with measured.open("w") as file:
            # Lines of other pools stay.
            file.writelines(json.dumps(line) + "\n" for line in known if line["pool"] not in chosen)
            for line in _lines(measure, jobs, given.processes):
                file.write(json.dumps(line) + "\n")
                file.flush()
        measured.replace(given.out)
    lines = [json.loads(line) for line in given.out.read_text().splitlines()]
    if given.docs:
        text = DOCS.read_text(encoding="utf-8")
        for (begin, end), written in ((SUMMARY, summary(lines)), (RESULTS_TABLES, tables(lines))):
            before, after = text.split(begin)[0], text.split(end)[1]
            text = f"{before}{begin}\n{written}{end}{after}"
        DOCS.write_text(text, encoding="utf-8")
        curves(lines, DOCS.parent / "method-sweeps.svg")
    else:
        sys.stdout.write(f"{summary(lines)}\n{tables(lines)}")


def curves(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Worst-group accuracy against the validation split's bias, size and class imbalance, on the pools of the sweeps."""
    import matplotlib

    matplotlib.use("svg")
    # The same bytes each time.
    matplotlib.rcParams["svg.hashsalt"] = "nsf"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
    panels = (("val_bias", "validation bias"), ("size", "validation samples"), ("imbalance", "class imbalance"))
    for axis, (key, label) in zip(axes, panels, strict=True):
        for name, style in (("tshirt-dress-99", "-"), ("coat-shirt-97", "--")):
            chosen = [line for line in lines if line["pool"] == name and line["noise"] == 0 and _belongs(line, key)]
            values = sorted({line[key] for line in chosen})
            for column, colour in (("erm", "grey"), ("last_layer", "tab:orange"), ("auto", "tab:blue"), ("oracle", "black")):
                means = [fmean(line[column] for line in chosen if line[key] == value) for value in values]
                axis.plot(values, means, style, color=colour, label=f"{column}, {name}", marker=".")
        axis.set_xlabel(label)
        if key == "size":
            axis.set_xscale("log")
            # Plain numbers, few enough to be read.
            axis.set_xticks([200, 500, 1000, 3000], ["200", "500", "1,000", "3,000"])
            axis.minorticks_off()
    axes[0].set_ylabel("worst-group accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def _belongs(line: dict[str, Any], key: str) -> bool:
    """Whether a line stands on the curve of one size: all else at bias 0.9, about 2,000 samples, even classes."""
    at = {"val_bias": 0.9, "imbalance": 1.0}
    usual = all(line[other] == value for other, value in at.items() if other != key)
    return usual and (key != "val_bias" or line["size"] > 1500) and (key != "imbalance" or 1500 < line["size"] < 2000)


def summary(lines: Sequence[dict[str, Any]]) -> str:
    """What all pools of a role come to, as Markdown: a row per figure, a column per role."""
    main_lines = _of_part(lines, "main")
    roles = sorted({line["role"] for line in main_lines}, key=ROLES.index)
    text = _head(" | ".join(["mean worst-group accuracy", *(f"role {role}" for role in roles)]))

    def row(title: str, figure: "Callable[[Sequence[dict[str, Any]]], str]", *, biased: bool = True) -> None:
        cells = []
        for role in roles:
            chosen = [line for line in main_lines if line["role"] == role and (line["gap"] > GAP) == biased]
            cells.append(figure(chosen) if chosen else "-")
        text.append(f"| {' | '.join([title, *cells])} |")

    def short(chosen: Sequence[dict[str, Any]]) -> str:
        return f"{fmean(line['oracle'] - line['auto'] for line in chosen):.3f}" if chosen else "-"

    def at(bias: float, chosen: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [line for line in chosen if (line["val_bias"] <= 0.5 if bias == 0.5 else line["val_bias"] == bias)]

    biases = (0.5, 0.9, 0.95, 0.98)
    row("biased sets", lambda chosen: str(len(chosen)))
    for title, column in (
        ("ERM", "erm"), ("published", "published"), ("last layer", "last_layer"), ("**auto**", "auto"),
        ("oracle", "oracle"), ("own oracle", "oracle_rare"),
    ):  # fmt: skip
        row(title, lambda chosen, column=column: f"{fmean(line[column] for line in chosen):.3f}")
    row("auto below the oracle", short)
    row("- validation even / 0.9 / 0.95 / 0.98", lambda chosen: " / ".join(short(at(bias, chosen)) for bias in biases))
    row("- two classes", lambda chosen: short([line for line in chosen if line["classes"] == 2]))
    row("- more classes", lambda chosen: short([line for line in chosen if line["classes"] > 2]))
    row("base head kept", _kept)
    row("- validation even / 0.9 / 0.95 / 0.98", lambda chosen: " / ".join(_kept(at(bias, chosen)) for bias in biases))
    row(
        "below the base head by more than 0.01",
        lambda chosen: str(sum(line["auto"] < line["erm"] - 0.01 for line in chosen)),
    )
    row("final verdict: missed / cannot tell", lambda chosen: " / ".join(_said(chosen, "not biased", "cannot tell")))
    row("unbiased sets", lambda chosen: str(len(chosen)), biased=False)
    row("- called biased", lambda chosen: _said(chosen, "biased")[0], biased=False)
    row("- base head kept", _kept, biased=False)
    row("- mean change", lambda chosen: f"{fmean(line['auto'] - line['erm'] for line in chosen):+.3f}", biased=False)
    return "\n".join(text) + "\n"


def _of_part(lines: Sequence[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """The lines of one part, "published" being the best of its settings, by hindsight."""
    return [
        line | {"published": max(line[f"published {eliminate}/{update}"] for eliminate, update in PUBLISHED)}
        for line in lines
        if line["part"] == part
    ]


def _kept(lines: Sequence[dict[str, Any]]) -> str:
    return str(sum(line["kept"] is not None for line in lines))


def _said(lines: Sequence[dict[str, Any]], *verdicts: str) -> list[str]:
    return [str(sum(line["verdict"] == verdict for line in lines)) for verdict in verdicts]


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown: one row per pool and part, and what the issue's bounds are held against."""
    text: list[str] = []
    main_lines = _of_part(lines, "main")
    columns = ("erm", "published", "last_layer", "auto", "oracle", "oracle_rare")
    for role in sorted({line["role"] for line in main_lines}, key=ROLES.index):
        heads = "pool | sets | ERM | published, best of 3 by hindsight | last layer | auto | oracle | own oracle | base kept"
        text += [f"### Pools of role {role}", "", *_head(heads)]
        for name in dict.fromkeys(line["pool"] for line in main_lines if line["role"] == role):
            text.append(_row(name, [line for line in main_lines if line["pool"] == name], columns))
        for title, keep in (
            ("**biased, 2 classes**", lambda line: line["gap"] > GAP and line["classes"] == 2),
            ("**biased, more classes**", lambda line: line["gap"] > GAP and line["classes"] > 2),
            ("**all biased**", lambda line: line["gap"] > GAP),
            ("all biased, validation even", lambda line: line["gap"] > GAP and line["val_bias"] <= 0.5),
            ("all biased, validation 0.9", lambda line: line["gap"] > GAP and line["val_bias"] == 0.9),
            ("all biased, validation 0.95", lambda line: line["gap"] > GAP and line["val_bias"] == 0.95),
            ("all biased, validation 0.98", lambda line: line["gap"] > GAP and line["val_bias"] == 0.98),
            ("**all unbiased**", lambda line: line["gap"] <= GAP),
        ):
            found = [line for line in main_lines if line["role"] == role and keep(line)]
            if found:
                text.append(_row(title, found, columns))
        text += ["", *_verdicts([line for line in lines if line["role"] == role]), ""]
    text += [
        "### Sweeps",
        "",
        "![Worst-group accuracy over validation bias, size and class imbalance](method-sweeps.svg)",
        "",
    ]
    text += _head("sweep | pool | value | sets | ERM | last layer | auto | oracle | base kept")
    for part, key in (("size", "size"), ("bias", "val_bias"), ("imbalance", "imbalance")):
        found = [line for line in lines if line["part"] == part]
        for name, value in sorted({(line["pool"], line[key]) for line in found}):
            chosen = [line for line in found if line["pool"] == name and line[key] == value]
            row = _row("", chosen, ("erm", "last_layer", "auto", "oracle")).split("|", 2)[2]
            text.append(f"| {part} | {name} | {value} |{row}")
    shaped = _of_part(lines, "shapes")
    if shaped:
        columns = ("erm", "published", "last_layer", "class_balanced", "auto", "oracle", "oracle_rare")
        text += ["", "### Group sizes of other benchmarks", ""]
        text += _head(
            "pool | sets | ERM | published, best of 3 by hindsight | last layer | class-balanced | auto | oracle | "
            "own oracle | base kept | plain | biases alone"
        )
        for name in dict.fromkeys(line["pool"] for line in shaped):
            text.append(_shape_row(name, [line for line in shaped if line["pool"] == name], columns))
        with_bias = {pool.name for pool in POOLS if pool.biased}
        text.append(_shape_row("**all biased**", [line for line in shaped if line["pool"] in with_bias], columns))
    return "\n".join(text) + "\n"


def _shape_row(title: str, lines: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    remedies = (str(sum(line["remedy"] == remedy for line in lines)) for remedy in (PLAIN, EVENED))
    return f"{_row(title, lines, columns)} {' | '.join(remedies)} |"


def _head(columns: str) -> list[str]:
    return [f"| {columns} |", "|" + " --- |" * (columns.count("|") + 1)]


def _row(title: str, lines: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    means = " | ".join(f"{fmean(line[column] for line in lines):.3f}" for column in columns)
    return f"| {title} | {len(lines)} | {means} | {_kept(lines)} |"


def _verdicts(lines: Sequence[dict[str, Any]]) -> list[str]:
    """False alarms, misses, and what never-worse is held against."""
    text = _head(
        "part | sets | biased: found / cannot tell / missed | not biased: said so / cannot tell / false alarm | "
        "repaired of each | lost on unbiased: mean, most | worse than base on biased: most | "
        "lost on unbiased, the training split given: mean, most"
    )
    main = [line for line in lines if line["part"] == "main"]
    parts = [
        ("main", main),
        ("main, validation even", [line for line in main if line["val_bias"] <= 0.5]),
        ("val bias alone", [line for line in lines if line["part"] == "val bias alone"]),
    ]
    for noise in (0.05, 0.1, 0.2):
        flipped = [line for line in lines if line["part"] == "noise" and line["noise"] == noise]
        parts.append((f"{noise:.0%} labels flipped", flipped))
    for label, chosen in parts:
        if not chosen:
            continue
        biased = [line for line in chosen if line["gap"] > GAP]
        clean = [line for line in chosen if line["gap"] <= GAP]
        said = ("biased", "cannot tell", "not biased")
        found, alarms = " / ".join(_said(biased, *said)), " / ".join(_said(clean, *reversed(said)))
        lost = [line["erm"] - line["auto"] for line in clean] or [0.0]
        worse = max([line["erm"] - line["auto"] for line in biased] or [0.0])
        repaired = f"{len(biased) - int(_kept(biased))} biased, {len(clean) - int(_kept(clean))} not"
        losses = f"{fmean(lost):.3f}, {max(lost):.3f} | {worse:.3f} | {_checked(clean)}"
        text.append(f"| {label} | {len(chosen)} | {found} | {alarms} | {repaired} | {losses} |")
    return text


def _checked(lines: Sequence[dict[str, Any]]) -> str:
    """What is lost of these, mean and most, with the training split given; "-" where that was not measured."""
    # A base head that is kept without the training split is kept with it.
    checked = [line["auto"] if line["kept"] else line.get("checked") for line in lines]
    if None in checked or not lines:
        return "-"
    lost = [line["erm"] - score for line, score in zip(lines, checked, strict=True)]
    return f"{fmean(lost):.3f}, {max(lost):.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
