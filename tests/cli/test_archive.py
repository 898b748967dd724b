"""verify, export and history on the command line: what they print and how they exit."""

import json

import pytest
from tampering import close, final_loss

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


def test_verify_of_no_record_is_bad_input(capsys, tmp_path):
    assert invoke(["verify", str(tmp_path / "none")]) == 2
    assert "no such record" in capsys.readouterr().err
