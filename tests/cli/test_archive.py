"""verify, export and history on the command line: what they print and how they exit."""

import json

import pytest
from tampering import close, final_loss

import gradbench
from gradbench.cli.main import invoke

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_verify_prints_what_it_rests_on_and_exits_1_where_the_record_does_not_hold(sweep, capsys):
    run = sweep("himmelblau", ["sgd"], [1e-3, 1e-2], seeds=3, steps=20, timing="none")
    assert invoke(["verify", str(run.path), "--seed", "7", "--sample", "4", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert f"{run.id} holds: of 6 trials 4 drawn (--seed 7), 4 bit for bit" in out
    assert "a changed trial would be found with a probability of 66.7 %" in out

    final_loss(run.path)
    close(run.path)
    assert invoke(["verify", str(run.path), "--format", "json", "--quiet"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["holds"]
    assert [row["trial"] for row in found["rows"] if row["result"] == "differs"] == [4]


def test_export_prints_the_folder_and_how_to_look_at_it(sweep, capsys, tmp_path):
    run = sweep("himmelblau", ["sgd"], [1e-3, 1e-2], seeds=1, steps=5, timing="none")
    assert invoke(["export", str(run.path), "--to", "csv", "--into", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "out")
    assert (tmp_path / "out" / "curves.csv").is_file()
    assert "look at it with" in err
    assert invoke(["export", str(run.path), "--to", "csv", "--into", str(tmp_path / "out")]) == 2


def test_history_has_a_line_for_each_number_of_each_pair(sweep, capsys, tmp_path):
    for _ in range(2):
        run = sweep("quadratic_bowl", ["sgd"], [0.1, 0.5], seeds=1, steps=200, timing="batched")
    assert invoke(["history", str(run.path.parent), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["quadratic_bowl", "sgd"]] * 2
    assert invoke(["history", str(tmp_path), "--quiet"]) == 2


def test_compare_has_races_and_tunability(sweep, capsys):
    run = sweep("quadratic_bowl", ["sgd", "momentum"], [0.1, 0.5], seeds=4, steps=200, timing="none")
    assert invoke(["compare", str(run.path), "--races"]) == 0
    assert "4 seeds, 1 of 1 problems" in capsys.readouterr().out
    assert invoke(["compare", str(run.path), "--tunability"]) == 0
    assert "tuning" in capsys.readouterr().out
    assert invoke(["compare", str(run.path), "--tunability", "--races"]) == 2


def test_verify_of_no_record_is_bad_input(capsys, tmp_path):
    assert invoke(["verify", str(tmp_path / "none")]) == 2
    assert "no such record" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{}")  # of something else
    assert invoke(["verify", str(tmp_path)]) == 2
    assert "not a gradbench record" in capsys.readouterr().err


def test_a_record_that_cannot_be_read_does_not_hold_and_is_named(sweep, capsys):
    run = sweep("himmelblau", ["sgd"], [1e-3], seeds=1, steps=5, timing="none")
    for name in ("trials.parquet", "manifest.json", "run.json"):
        whole = (run.path / name).read_bytes()
        (run.path / name).write_bytes(whole[: len(whole) // 2])
        assert invoke(["verify", str(run.path), "--quiet"]) == 1
        out = capsys.readouterr().out
        assert f"{run.id} does not hold: it cannot be read" in out
        assert f"{name}: " in out
        assert f"{run.id} does not hold: it cannot be read" in str(gradbench.verify(run.path))
        (run.path / name).write_bytes(whole)
    (run.path / "curves.parquet").unlink()
    assert invoke(["verify", str(run.path), "--quiet", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["holds"], found["record"], found["rows"]) == (False, run.id, [])
    assert invoke(["verify", str(run.path), "--quiet", "--format", "csv"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "curves.parquet: " in err
    assert invoke(["compare", str(run.path)]) == 2  # of what is asked of it elsewhere it is bad input
