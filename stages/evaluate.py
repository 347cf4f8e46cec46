"""evaluate: worst-group accuracy beside mean accuracy, of the base and the repaired head (step 5).

The only stage of the pipeline that reads group labels (`compare`, beside it, scores by them as well).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import artifacts, distributed, metrics
from stages.artifacts import Metadata
from stages.errors import WrongArtifact, listed
from stages.lineage import agree, check_known, check_lineage, check_model
from stages.outputs import outputs
from stages.passes import best
from stages.runtime import Progress, begin, reproducible, silent


def run(
    *,
    features: Path,
    update: Path,
    out: Path,
    metrics_out: Path,
    head: Path | None = None,
    groups_out: Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The stage on files: read test features, the update and, where there is one, the base head.

    Writes the predictions to `out`, the metrics as JSON to `metrics_out` and, where asked, one line a group to the
    CSV `groups_out`, for plots.

    Returns:
        What `metrics_out` holds: {"base": report or None, "nsf": report, "samples": {group or class: count},
        "update": [its fingerprint]}, the reports as `stages.metrics.report` gives them; and, where the numbers need them,
        "notes" in words.

    Raises:
        UserError: an input is missing, wrong, or does not fit; nothing is written.
    """
    target = begin(device)
    data = artifacts.read("features", features, attributes=True)
    new = artifacts.read("update", update)
    base = artifacts.read("head", head) if head is not None else None
    agree("d", data, new, base)
    for each in (base, new):
        check_model(data, each)
    classes = agree("C", base, new)
    check_lineage(new, head=base)
    check_known(data, classes, new, do="give test features of the same classes")
    names = data.class_names(classes)
    with outputs(features, update, head) as files, reproducible(0):
        files.check(out, metrics_out, groups_out)
        labels, attributes = data["labels"], data.get("attributes")
        heads = {"nsf": (new["folded_weight"].to(target), new["folded_bias"].to(target))}
        if base is not None:
            heads["base"] = base.head(target)
        own = best(data.rows.to(target), list(heads.values()), what="predict", progress=progress)
        predictions = {model: distributed.rows_of_all(classes).cpu() for model, classes in zip(heads, own, strict=True)}
        named = (labels, attributes, names, data.metadata.attribute_names)
        train_groups = _train_groups(data)
        classes_of, groups_of = metrics.members(*named)
        result: dict[str, Any] = {
            "base": metrics.report(predictions["base"], *named, train_groups) if base is not None else None,
            "nsf": metrics.report(predictions["nsf"], *named, train_groups),
            "samples": {name: int(chosen.sum()) for name, chosen in (groups_of or classes_of).items()},
            # What was measured, for export to check; in a list, which DVC does not take for a metric.
            "update": [new.fingerprint],
        }
        if notes := _notes(data, new, names):
            result["notes"] = notes
        inputs = {"features": data, "update": new, "head": base}
        metadata = Metadata(
            inputs={name: artifact.fingerprint for name, artifact in inputs.items() if artifact is not None},
            class_names=names,
        )
        files.artifact(
            "evaluate",
            out,
            {"base_predictions": own[1] if base is not None else None, "predictions": own[0]},
            metadata,
        )
        files.text(metrics_out, json.dumps(result, indent=2) + "\n")
        if groups_out is not None:
            files.table(groups_out, _groups_table(result))
    return result


def _notes(features: artifacts.Artifact, update: artifacts.Artifact, names: Sequence[str]) -> list[str]:
    """What the numbers must not be read without."""
    notes = []
    if update.metadata.inputs.get("features") == features.fingerprint:
        notes.append(metrics.FITTED_ON)
    missing = [name for name, size in zip(names, features.class_sizes(len(names)).tolist(), strict=True) if not size]
    if missing:
        notes.append(f"There is no test sample of class {listed(missing)}, and the accuracies say nothing of it.")
    return notes


def _train_groups(features: artifacts.Artifact) -> dict[str, int] | None:
    """The group sizes of the training split that extract has noted in test features.

    Raises:
        WrongArtifact: what stands there is something else.
    """
    try:
        noted = json.loads(features.metadata.notes.get("train_groups", "null"))
        return None if noted is None else {str(name): int(count) for name, count in noted.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise WrongArtifact(
            "holds damaged metadata ('train_groups')", where=features.path, do="run `nsf extract` again"
        ) from error


def _groups_table(result: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """One line a group (a class, where there are no groups), one column a model: for `dvc plots`."""
    parts = "groups" if result["nsf"]["groups"] else "classes"
    yield ["group", "samples", "base", "nsf"]
    for name, samples in result["samples"].items():
        base = result["base"][parts][name] if result["base"] else None
        yield [name, samples, base, result["nsf"][parts][name]]
