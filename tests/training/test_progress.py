"""The progress display: what it says, how often, and that it survives NaN."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from marl_kl.devices import MemoryInUse
from marl_kl.storage.run_folder import RunWarning
from marl_kl.training import progress as progress_module
from marl_kl.training.progress import Progress, _Bar


class _Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _progress(clock=None, *, terminal=False, **options):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=80, highlight=False)
    arguments = dict(total_updates=40, env_steps_per_update=1000, num_seeds=4, kl_budget=0.02, console=console)
    return Progress(**(arguments | options), clock=clock or _Clock()), output


def _metrics(num_updates=10, returns=(1.0, 2.0, 3.0, 4.0)):
    shape = (len(returns), num_updates)
    return {
        "episode_return": np.repeat(np.array(returns)[:, None], num_updates, axis=1),
        "kl_total": np.full(shape, 0.015),
        "step_fraction": np.tile([1.0, 0.8, 0.0, 1.0], (*shape, 1)),
    }


def test_plain_line_says_speed_return_kl_acceptance_and_time_left():
    clock = _Clock()
    progress, output = _progress(clock)
    with progress:
        progress.phase("compiling")
        clock.now += 100  # must not count in the speed
        progress.phase("training")
        clock.now += 20
        progress.advance(10, _metrics())
        assert progress.steps_per_second == 10 * 1000 * 4 / 20
        assert progress.seconds_left == 60
    line = output.getvalue().splitlines()[-1]
    wanted = ("25 %", "10/40 updates", "steps/s 2,000", "return 2.5 (1 to 4)", "KL/budget 75 %", "accepted 75 %")
    assert all(text in line for text in (*wanted, "1:00 left"))


def test_memory_is_shown_where_it_is_known():
    """Of this process on a CPU, of the fullest device elsewhere."""
    progress, output = _progress(memory=lambda: MemoryInUse(3 * 2**29))
    with progress:
        progress.advance(10, _metrics())
    assert output.getvalue().rstrip().endswith("accepted 75 %  memory 1.5 GiB")
    progress, output = _progress(memory=lambda: MemoryInUse(2**30, 80 * 2**30), terminal=True)
    with progress:
        progress.advance(10, _metrics())
    assert "1.0 of 80.0 GiB" in output.getvalue()
    progress, output = _progress(memory=lambda: None)
    with progress:
        progress.advance(10, _metrics())
    assert "memory" not in output.getvalue()
    progress, output = _progress()
    with progress:
        progress.advance(10, _metrics())
    assert re.search(r"memory \d+\.\d GiB$", output.getvalue().rstrip())


@pytest.mark.parametrize("num_seeds", [1, 64])
def test_the_live_display_stays_readable_with_any_number_of_seeds(num_seeds):
    """A few lines of 80 columns, with everything in them and no fact torn apart."""
    returns = np.linspace(-12345.6, 98765.4, num_seeds)
    progress, output = _progress(num_seeds=num_seeds, memory=lambda: MemoryInUse(2**33))
    progress.advance(10, _metrics(returns=returns))
    output.seek(output.truncate(0))
    console = Console(file=output, width=80)
    console.print(_Bar(progress).get_renderable())
    text = output.getvalue()
    assert len(text.splitlines()) == (3 if num_seeds > 1 else 2) and all(len(line) <= 80 for line in text.splitlines())
    assert all(fact in text for fact in ("KL/budget 75 %", "accepted 75 %", "memory 8.0 GiB", "10/40 updates"))
    assert ("return 43210 (-12346 to 98765)" if num_seeds > 1 else "return -12346") in text


@pytest.mark.parametrize("width", [30, 50, 66])
def test_a_narrow_terminal_loses_the_bar_and_no_number(width):
    clock = _Clock()
    progress, output = _progress(clock, total_updates=200_000, memory=lambda: MemoryInUse(2**33))
    progress.phase("training")
    clock.now += 4000
    progress.advance(100_000, _metrics(returns=(-12345.6, 98765.4)))
    output.seek(output.truncate(0))
    progress._console.width = width
    progress._console.print(_Bar(progress).get_renderable())
    text = output.getvalue()
    assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
    wanted = ("training 1:06:40", "50 %", "100000/200000 updates", "1:06:40 left", "return 43210 (-12346 to 98765)")
    assert all(fact in text for fact in (*wanted, "KL/budget 75 %", "memory 8.0 GiB"))


def test_plain_lines_come_at_most_every_ten_seconds():
    clock = _Clock()
    progress, output = _progress(clock, mode="plain", total_updates=100)
    with progress:
        progress.phase("training")
        for _ in range(100):
            clock.now += 1
            progress.advance(1, _metrics(1))
    assert 9 <= len(output.getvalue().splitlines()) <= 12


@pytest.mark.filterwarnings("error")
def test_nan_and_missing_metrics_show_as_a_dash():
    progress, output = _progress()
    with progress:
        progress.phase("training")
        progress.advance(10, _metrics(returns=(np.nan,) * 4) | {"kl_total": np.full((4, 10), np.nan)})
    assert "return -" in output.getvalue() and "KL/budget -" in output.getvalue()
    progress, output = _progress(kl_budget=None)
    with progress:
        progress.advance(40, {})
    assert "KL" not in output.getvalue() and "accepted" not in output.getvalue()


def test_without_a_budget_the_kl_itself_is_shown():
    progress, output = _progress(kl_budget=None)
    metrics = {"kl_total": np.full((4, 10), 0.015), "clip_fraction": np.full((4, 10, 2), 0.25)}
    with progress:
        progress.advance(10, metrics)
    assert "KL 0.015" in output.getvalue() and "beyond clip 25 %" in output.getvalue()


def test_one_seed_with_nan_does_not_hide_the_others():
    progress, output = _progress()
    with progress:
        progress.advance(10, _metrics(returns=(np.nan, 1.0, 2.0, 3.0)))
    assert "return 2 (1 to 3)" in output.getvalue()


def test_none_is_silent():
    progress, output = _progress(mode="none", terminal=True)
    with progress:
        progress.phase("compiling")
        progress.advance(10, _metrics())
    assert output.getvalue() == ""


def test_terminal_gets_a_live_display_that_ends_after_an_error():
    progress, output = _progress(terminal=True)
    with pytest.raises(RuntimeError, match="boom"):
        with progress:
            progress.phase("training")
            progress.advance(10, _metrics())
            raise RuntimeError("boom")
    assert "10/40 updates" in output.getvalue() and "stopped" in output.getvalue()
    assert output.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor must come back"


def test_a_resumed_run_counts_only_what_it_does_itself():
    clock = _Clock()
    progress, output = _progress(clock)
    progress.start_at(30)
    with progress:
        progress.phase("training")
        assert "resuming at update 30 of 40" in output.getvalue() and np.isnan(progress.steps_per_second)
        clock.now += 20
        progress.advance(5, _metrics())
        assert progress.steps_per_second == 5 * 1000 * 4 / 20 and progress.seconds_left == 20
    assert "87 %  35/40 updates  0:20 left" in output.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_that_fails_costs_one_warning(monkeypatch, terminal):
    progress, output = _progress(terminal=terminal, mode="auto" if terminal else "plain")

    def full(text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "write", full)
    with pytest.warns(RunWarning, match="No space left") as warned, progress:
        for _ in range(4):
            progress.advance(10, _metrics())
    assert len(warned) == 1


def test_a_notebook_without_widgets_gets_lines(monkeypatch):
    monkeypatch.setattr(progress_module.importlib.util, "find_spec", lambda name: None)
    progress, output = _progress(terminal=True)
    progress._console.is_jupyter = True
    monkeypatch.setattr(progress._console, "print", lambda text, **options: output.write(f"{text}\n"))
    with progress:
        progress.advance(10, _metrics())
    assert progress._bar is None and "10/40 updates" in output.getvalue()


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="progress='loud'; it must be one of auto, plain, none"):
        _progress(mode="loud")
