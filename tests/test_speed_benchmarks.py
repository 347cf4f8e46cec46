"""benchmarks/speed.py and what belongs to it: the reference is the method, and the table says what was measured."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import outofcore, reference, scaling, speed, table
from benchmarks.reference import DRAWN_ROWS, planted
from benchmarks.table import Row
from stages import artifacts, passes
from stages.eliminate import eliminate
from stages.identify import identify
from stages.neutralize import neutralize
from stages.passes import best, predict
from stages.update import select, update
from tests.conftest import Done, Golden

SMALL = speed.Options(threads=1, samples=900, width=32, quick=True)


def test_reference_is_the_golden_cases(golden: Golden) -> None:
    features, labels = golden["features"], golden["labels"]
    centroids, minority = reference.identify(features, labels)
    assert torch.equal(minority, golden["minority"])
    torch.testing.assert_close(centroids, golden["centroids"], atol=1e-5, rtol=0)
    torch.testing.assert_close(reference.neutralize(features, labels, minority), golden["centers"], atol=1e-5, rtol=0)
    mapped = reference.transform(features, golden["scale"], golden["shift"])
    rescued, conforming = reference.select(mapped, labels, minority, golden["centers"])
    assert torch.equal(rescued, golden["rescued"]) and torch.equal(conforming, golden["conforming"])
    if (steps := int(golden.numbers["eliminate_steps"])) <= 120:
        learning = reference.Eliminate(features, labels, golden["centers"])
        for _ in range(steps):
            learning.step()
        torch.testing.assert_close(learning.scale.detach(), golden["scale"], atol=1e-4, rtol=0)
        torch.testing.assert_close(learning.shift.detach(), golden["shift"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_nsf_is_the_reference(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage by stage on what the benchmarks are measured on, by either way that nsf has."""
    monkeypatch.setattr(passes, "KERNEL_VALUES", 1 if compiled else 1 << 60)
    data = planted(1500, 48)
    x, labels = data.features, data.labels
    fitted = reference.fit(x, labels, eliminate_steps=25, update_steps=20, seed=3)
    found = identify(x, labels)
    assert torch.equal(found.minority, fitted.minority)
    centers = neutralize(x, labels, found.minority)
    torch.testing.assert_close(centers, fitted.centers, atol=1e-5, rtol=0)
    learned = eliminate(x, labels, centers, steps=25)
    torch.testing.assert_close(learned.scale, fitted.scale, atol=1e-4, rtol=0)
    torch.testing.assert_close(learned.shift, fitted.shift, atol=1e-4, rtol=0)
    kinds = select(x, labels, found.minority, centers, learned.scale, learned.shift)
    assert torch.equal(kinds[0], fitted.rescued) and torch.equal(kinds[1], fitted.conforming)
    new = update(x, labels, *kinds, learned.scale, learned.shift, classes=2, steps=20, seed=3)
    torch.testing.assert_close(new.weight, fitted.weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(new.bias, fitted.bias, atol=1e-4, rtol=0)
    assert torch.equal(best(x, [data.head], what="predict")[0], reference.predict(x, *data.head))


def test_planted_features_have_what_the_stages_need() -> None:
    data = planted(3000, 64)
    minority = identify(data.features, data.labels).minority
    assert 0.06 < float(minority.double().mean()) < 0.1
    # The base head reads the attribute.
    assert float((predict(data.features, *data.head) == data.attributes).double().mean()) > 0.99
    fitted = reference.fit(data.features, data.labels, eliminate_steps=1, update_steps=1)
    assert int(fitted.rescued.sum()) > 0.8 * int(minority.sum())


def test_planted_rows_do_not_depend_on_the_piece() -> None:
    whole = planted(DRAWN_ROWS + 500, 4, dtype=torch.float16)
    part = planted(400, 4, dtype=torch.float16, first=DRAWN_ROWS)
    assert torch.equal(part.labels, whole.labels[DRAWN_ROWS : DRAWN_ROWS + 400])
    assert torch.equal(part.features[:400], whole.features[DRAWN_ROWS : DRAWN_ROWS + 400])


def test_a_row_says_whether_what_was_asked_is_met() -> None:
    assert Row("a", "ms", 80.0, 2.0, 40.0, "ratio >= 40").met == "yes"
    assert Row("a", "ms", 78.0, 2.0, 39.0, "ratio >= 40").met == "no"
    assert Row("a", "", None, 3.0, None, "ours <= 3").met == "yes"
    assert Row("a", "", None, None, None, "ours <= 3").met == "" == Row("a", "", None, 3.0).met
    row = Row("a", "ms", 1.23456, 2.0, None, "", "a note")
    assert Row.from_json(row.to_json()) == Row("a", "ms", 1.235, 2.0, None, "", "a note")


def test_the_table_renders() -> None:
    text = table.render(
        [Row("eliminate", "ms", 611.0, 13.25, 46.1, "ratio >= 40"), Row("apart", "", None, 6.2e-6, note="n")]
    )
    lines = text.splitlines()
    assert re.split(r"\s{2,}", lines[2]) == ["eliminate", "ms", "611", "13.2", "46.1", "ratio >= 40", "yes"]
    assert re.split(r"\s{2,}", lines[3])[0] == "apart *" and "6.2e-06" in lines[3] and lines[4] == "* n"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of benchmarks/speed.py run here, where each would have a process of its own."""

    def child(options: speed.Options, case: str, *arguments: str) -> object:
        return json.loads(json.dumps(getattr(speed, f"case_{case}")(options, *arguments)))

    monkeypatch.setattr(speed, "_child", child)


@pytest.mark.usefixtures("in_this_process")
def test_sections_are_measured_kept_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    words = [f"--{name}={getattr(SMALL, name)}" for name in ("threads", "samples", "width")]
    speed.main([*words, "--quick", "--out", str(out), "--only", "eliminate", "passes", "update", "fit"])
    shown = capsys.readouterr().out
    kept = json.loads(out.read_text())
    assert set(kept) == {"eliminate", "passes", "update", "fit"}
    for section in kept.values():
        assert set(section) == {"machine", "quick", "rows", "samples", "width"}
        assert section["quick"] is True and (section["samples"], section["width"]) == (900, 32)
        assert {"cpu", "cores", "threads", "torch"} <= set(section["machine"])
        for row in section["rows"]:
            assert set(row) == {"name", "unit", "reference", "ours", "ratio", "asked", "note", "met"}
            assert row["name"] in shown
    rows = {row["name"]: row for section in kept.values() for row in section["rows"]}
    assert rows["identify, flags that differ"]["met"] == "yes"
    assert next(row for name, row in rows.items() if "T's difference" in name)["met"] == "yes"
    read = {name.split(",")[0]: row["ours"] for name, row in rows.items() if "times that the rows are read" in name}
    assert read == {"identify": 2.0, "neutralize": 1.0, "evaluate": 1.0}
    assert out.read_text() == json.dumps(kept, indent=2, sort_keys=True) + "\n"
    speed.main([*words, "--quick", "--out", str(out), "--only", "update"])
    again = json.loads(out.read_text())
    assert again["eliminate"] == kept["eliminate"] and set(again) == set(kept)


def test_the_committed_results_are_a_table() -> None:
    sections = json.loads(speed.RESULTS.read_text())
    assert set(sections) <= set(speed.SECTIONS)
    assert not any(section["quick"] for section in sections.values())
    assert speed.table(sections).count("\n") > len(sections)
    page = speed.PAGE.read_text()
    assert speed.documented(page, sections) == page, "docs/scale.md holds these results"


def test_shards_are_the_file_in_pieces(tmp_path: Path) -> None:
    samples = 2 * DRAWN_ROWS + 700
    one = outofcore.generate(tmp_path / "one", samples, 4)
    many = outofcore.generate(tmp_path / "many", samples, 4, shards=3)
    assert len(many.files) == 3 and len(one.files) == 1
    whole = load_file(one.features)
    for name in ("features", "labels", "attributes"):
        assert torch.equal(torch.cat([load_file(path)[name] for path in many.files]), whole[name])
    index = json.loads(many.features.read_text())
    assert list(index["weight_map"].values()) == [path.name for path in many.files]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert artifacts.read("features", many.features).fingerprint == artifacts.read("features", one.features).fingerprint


def test_the_commands_are_nsf_s(nsf: Callable[..., Done], tmp_path: Path) -> None:
    made = outofcore.generate(tmp_path / "set", 600, 8)
    for name, (stage, arguments) in outofcore.calls(made, tmp_path / "out").items():
        done = nsf(*outofcore.command(stage, arguments)[3:])
        assert done.code == 0, (name, done.stderr)
    assert (tmp_path / "out/metrics.json").exists() and (tmp_path / "out/auto.safetensors").exists()


def test_all_sizes_are_timed_alike(tmp_path: Path) -> None:
    sets = {name: outofcore.generate(tmp_path / name, n, 8) for name, n in (("small", 500), ("large", 600))}
    found = outofcore.within(sets, tmp_path / "out", repeats=4)
    assert set(found) == set(outofcore.calls(sets["small"], tmp_path)) - {outofcore.SEARCHING}
    assert all(len(times["small"]) == 4 and len(times["large"]) == 2 for times in found.values())


def test_private_memory_of_a_process_is_seen() -> None:
    hold = "import time; held = bytearray(b'x') * (64 << 20); time.sleep(2)"
    assert 64 << 20 < outofcore.watch([sys.executable, "-c", hold], threads=1).private < 160 << 20
    with pytest.raises(subprocess.CalledProcessError):
        outofcore.watch([sys.executable, "-c", "raise SystemExit(3)"], threads=1)


def test_a_difference_within_the_spread_is_not_judged() -> None:
    assert outofcore.slope([2.0, 2.1, 2.2], [1.0, 1.1, 1.2], 10) == (pytest.approx(0.1), True)
    assert outofcore.slope([1.1, 1.3, 1.5], [1.0, 1.1, 1.2], 10)[1] is False
    assert outofcore.slope([1.0], [1.2, 1.3], 10)[1] is False


def test_memory_that_was_free_before_is_seen_when_it_is_taken_again() -> None:
    """A higher peak in the past hides nothing; in a process of its own, for others' memory would be counted."""
    code = """
import torch
from benchmarks.table import peak_memory, settle_memory
torch.ones(40 << 20)
before = settle_memory()
quiet = peak_memory() - before
torch.ones(16 << 20)
print(quiet >> 20, (peak_memory() - before) >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=speed.REPOSITORY, check=True)
    quiet, taken = map(int, done.stdout.split())
    assert quiet < 8 and 60 <= taken < 80


def test_bytes_of_a_step_on_paper() -> None:
    assert scaling.sent("eliminate", 2048, 2) == 8 * 4097
    assert scaling.sent("update", 2048, 2) == 8 * 4099
