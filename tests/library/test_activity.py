"""What is being done is a line on a terminal's stderr, and nothing anywhere else."""

from __future__ import annotations

import io
import logging
import sys
import threading

import pytest

from gradbench.cli import progress
from gradbench.cli.progress import TerminalWatcher
from gradbench.engine.pair import Progress
from gradbench.inputs.plan import SweepPlan
from gradbench.library import activity
from gradbench.library.activity import Activity

LOG = logging.getLogger("gradbench.somewhere")


class Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def stderr(monkeypatch):
    """stderr as a terminal or a pipe, on which the line shows at once."""

    def make(terminal: bool) -> Stream:
        stream = Stream(terminal)
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(activity, "DELAY_SECONDS", 0.0)
        return stream

    return make


def wait_for_the_line(doing: Activity) -> None:
    doing.timer.join()
    doing.line.refresh()


def test_a_terminal_shows_what_the_library_logs(stderr):
    stream = stderr(terminal=True)
    with Activity(quiet=False) as doing:
        LOG.info("reading %s", "a record")
        wait_for_the_line(doing)
        assert "reading a record" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")  # the line is gone


def test_what_another_thread_does_is_not_what_is_waited_for(stderr):
    stream = stderr(terminal=True)
    with Activity(quiet=False) as doing:
        beside = threading.Thread(target=LOG.info, args=("compiling the next pair",))
        beside.start()
        beside.join()
        wait_for_the_line(doing)
    assert "next pair" not in stream.getvalue()


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True), (False, True)])
def test_a_pipe_and_quiet_show_nothing(stderr, terminal, quiet):
    stream = stderr(terminal)
    with Activity(quiet) as doing:
        doing.say("starting")
        LOG.info("reading a record")
    assert stream.getvalue() == ""


def test_the_library_logs_nothing_once_it_is_over(stderr):
    stderr(terminal=True)
    logger = logging.getLogger("gradbench")
    before = logger.level, list(logger.handlers)
    with Activity(quiet=False):
        assert logger.isEnabledFor(logging.INFO)
    assert (logger.level, logger.handlers) == before


def test_data_is_printed_without_the_line(stderr):
    stream = stderr(terminal=True)
    with Activity(quiet=False) as doing:
        wait_for_the_line(doing)
        with doing.paused():
            assert not doing.line.live.is_started
            assert stream.getvalue().endswith("\x1b[2K")
        assert doing.line.live.is_started


def test_a_run_says_which_pair_of_how_many_and_how_far_it_is(stderr):
    stream = stderr(terminal=True)
    with Activity(quiet=False) as doing:
        watcher = TerminalWatcher(doing)
        watcher.pairs = 12
        watcher.pair_started(2, "mlp", "adam")
        wait_for_the_line(doing)
        assert "pair 3 of 12, mlp × adam: compiling" in stream.getvalue()
        LOG.info("timing one trial")
        doing.line.refresh()
        assert "pair 3 of 12, mlp × adam: timing one trial" in stream.getvalue()
        watcher.chunk(Progress(1, 2, 6, 1000, 3000, 6000, 2.0))
        doing.line.refresh()
        assert "mlp × adam: sweeping, 2 alive, 1 retired, 3 waiting" in stream.getvalue()
        assert doing.line.tasks[0].percentage == 50
        watcher.pair_started(3, "mlp", "sgd")
        assert doing.line.tasks[0].total is None  # of the next pair's compiling nobody knows the length


def test_with_minibatches_a_trial_s_length_is_also_in_epochs(stderr, tmp_path, monkeypatch):
    plan = SweepPlan(("mlp", "quadratic_bowl"), ("sgd",), "1e-3:1:3", steps=300, batch_size=8)
    facts = {"mlp": {"examples": 53}, "quadratic_bowl": {"examples": None}}
    monkeypatch.setattr(progress, "read_info", lambda path: {"plan": plan.to_dict(), "problems": facts})
    stream = stderr(terminal=True)
    with Activity(quiet=False) as doing:
        watcher = TerminalWatcher(doing)
        watcher.started(tmp_path)
        watcher.pair_started(0, "mlp", "sgd")
        wait_for_the_line(doing)
        assert "pair 1 of 2, mlp × sgd, 300 steps (50 epochs): compiling" in stream.getvalue()  # 53 // 8 = 6 each
        watcher.pair_started(1, "quadratic_bowl", "sgd")
        assert doing.line.tasks[0].description == "pair 2 of 2, quadratic_bowl × sgd: compiling"


def test_a_sentence_is_wrapped_at_its_spaces_on_a_terminal_alone(stderr):
    text = " ".join(["word"] * 60)
    for terminal, lines in ((True, 3), (False, 1)):
        stream = stderr(terminal)
        Activity(quiet=False).print(text)
        assert len(stream.getvalue().splitlines()) == lines
        assert stream.getvalue().split() == text.split()
