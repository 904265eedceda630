"""The progress display of a run: a live bar on a terminal, occasional lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import rich.progress
from rich.console import Console, RenderableType
from rich.text import Text

from marl_kl import devices
from marl_kl.analysis.decoration import decoration
from marl_kl.analysis.text_tables import duration_text
from marl_kl.storage.shards import Shard

Mode = Literal["auto", "plain", "none"]

MODES = ("auto", "plain", "none")

_PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines, at least."""

_BAR_WIDTH = 30


class Progress:
    """A context manager that shows the progress of a run.

        with Progress(total_updates=100, env_steps_per_update=4096, num_seeds=4, kl_budget=0.02) as progress:
            progress.phase("compiling")
            progress.phase("training")
            progress.advance(10, metrics)

    Args:
        total_updates: updates of the whole run.
        env_steps_per_update: env steps per seed and update.
        num_seeds: seeds that run side by side; speeds count the env steps of all of them.
        kl_budget: joint KL budget of one update; None if the algorithm has none.
        mode: "auto": live on a terminal and, with ipywidgets, in a notebook, plain elsewhere; "plain": at most one line per ten seconds; "none".
        console: where to; None: standard output.
        memory: returns the devices' memory in use, after each `advance`; None is not shown.
        clock: seconds that only grow (for tests).

    A terminal that fails costs a `RunWarning` and the display, not the run.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(
        self,
        *,
        total_updates: int,
        env_steps_per_update: int,
        num_seeds: int,
        kl_budget: float | None = None,
        mode: Mode = "auto",
        console: Console | None = None,
        memory: Callable[[], devices.MemoryInUse | None] = devices.memory_in_use,
        clock=time.monotonic,
    ):
        if mode not in MODES:
            raise ValueError(f"progress={mode!r}; it must be one of {', '.join(MODES)}")
        self._total = total_updates
        self._steps_per_update = env_steps_per_update
        self._num_seeds = num_seeds
        self._kl_budget = kl_budget
        self.mode = mode
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._memory, self._in_use = memory, None
        self._bar: _Bar | None = None
        self._phase = "starting"
        self._phase_since = clock()
        self._phase_seconds: dict[str, float] = {}
        self._training_since: float | None = None
        self._done = self._start = 0
        self._latest: dict[str, str] = {}
        self._last_line = -np.inf
        self._note = ""

    @classmethod
    def of_shard(cls, shard: Shard, update: int, mode: Mode) -> Progress:
        """Of a sweep's shard that has made `update` updates."""
        budgets = {getattr(trial.config, "kl_budget", None) for trial in shard.trials}
        progress = cls(
            total_updates=shard.config.num_updates,
            env_steps_per_update=shard.config.batch_size,
            num_seeds=len(shard.trials),
            kl_budget=budgets.pop() if len(budgets) == 1 else None,
            mode=mode,
        )
        progress.start_at(update)
        return progress

    def __enter__(self) -> Progress:
        self._phase_since = self._clock()
        if self._note and self.mode != "none":
            self._print(self._note)
        if self._start and self.mode != "none":
            self._print(f"resuming at update {self._start} of {self._total}")
        # rich needs ipywidgets for a live display in a notebook; without, it shows nothing
        has_widgets = self._console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        is_live = has_widgets or (self._console.is_terminal and not self._console.is_jupyter)
        if self.mode == "auto" and is_live:
            with self._decoration():
                bar = _Bar(self)
                bar.start()
                self._bar = bar
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._enter_phase("finished" if kind is None else "stopped")
        if self._bar is not None:
            with self._decoration():
                self._bar.stop()
        elif self._done:
            self._print_line(force=True)

    def start_at(self, update: int) -> None:
        """Tells, before the run starts, that its first `update` updates were made earlier; no speed counts them."""
        self._done = self._start = update

    def note(self, text: str) -> None:
        """A line that is printed when the run starts."""
        self._note = text

    def phase(self, name: str) -> None:
        """Tells what is happening now: "compiling", "training", "evaluating", ...

        Only time spent in "training" counts towards env steps per second.
        """
        self._enter_phase(name)
        # Compiling is the long silence at the start, which a log should explain.
        self._print_line(force=name == "compiling")

    def advance(self, num_updates: int, metrics: Mapping[str, np.ndarray] | None = None) -> None:
        """Tells that `num_updates` more updates are done.

        Args:
            num_updates: how many.
            metrics: their metrics, name -> [S, num_updates] or [S, num_updates, N]; names that are missing, and
                numbers that are not finite, show as "-".
        """
        self._done += num_updates
        if metrics is not None:
            self._latest = _latest(metrics, self._kl_budget)
        if self.mode != "none":
            self._in_use = self._memory()
        self._print_line()

    @property
    def steps_per_second(self) -> float:
        """Env steps of all seeds per second of training so far; NaN before the first update."""
        seconds = self._seconds_in("training")
        steps = (self._done - self._start) * self._steps_per_update * self._num_seeds
        return steps / seconds if steps and seconds > 0 else float("nan")

    @property
    def seconds_left(self) -> float:
        """At the average pace since training began, evaluations included; NaN before the first update."""
        made = self._done - self._start
        if not made or self._training_since is None:
            return float("nan")
        return (self._clock() - self._training_since) / made * (self._total - self._done)

    def _enter_phase(self, name: str) -> None:
        now = self._clock()
        self._phase_seconds[self._phase] = self._phase_seconds.get(self._phase, 0.0) + now - self._phase_since
        self._phase, self._phase_since = name, now
        if name == "training" and self._training_since is None:
            self._training_since = now

    def _seconds_in(self, phase: str) -> float:
        running = self._clock() - self._phase_since if self._phase == phase else 0.0
        return self._phase_seconds.get(phase, 0.0) + running

    def _facts(self) -> dict[str, str]:
        return {
            "steps/s": _short(self.steps_per_second),
            "return": self._latest.get("return", "-"),
            **({"KL/budget": "-"} if self._kl_budget is not None else {}),
            **{name: text for name, text in self._latest.items() if name != "return"},
            **({} if self._in_use is None else {"memory": str(self._in_use)}),
        }

    def _position(self) -> str:
        # Rounded down: 100 % only when nothing is left.
        percent = 100 * self._done // max(self._total, 1)
        left = f"  {duration_text(self.seconds_left)} left" if self._done > self._start else ""
        return f"{percent:3d} %  {self._done}/{self._total} updates{left}"

    def _print_line(self, force: bool = False) -> None:
        if self._bar is not None or self.mode == "none":
            return
        now = self._clock()
        if not force and now - self._last_line < _PLAIN_INTERVAL:
            return
        self._last_line = now
        facts = (
            "  ".join(f"{name} {value}" for name, value in self._facts().items()) if self._done > self._start else ""
        )
        self._print(f"{self._phase:<10} {self._position()}  {facts}".rstrip())

    def _print(self, text: str) -> None:
        """Whole: a log line that wraps at 80 columns cannot be searched."""
        with self._decoration():
            self._console.print(text, soft_wrap=True, markup=False)

    @contextlib.contextmanager
    def _decoration(self):
        """A terminal that fails costs one warning, and is not tried again."""
        mode, self.mode = self.mode, "none"
        with decoration("progress display"):
            yield
            self.mode = mode


class _Bar(rich.progress.Progress):
    """The live display: phase, bar and position, and below them the facts; on a narrow terminal without the bar."""

    def __init__(self, shown: Progress):
        columns = (
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(_BAR_WIDTH),
            rich.progress.TextColumn("{task.fields[position]}"),
        )
        self._shown = shown
        super().__init__(*columns, console=shown._console, refresh_per_second=5)
        self.add_task("", total=shown._total, position="")

    def get_renderables(self) -> Iterable[RenderableType]:
        shown = self._shown
        is_over = shown._phase in ("finished", "stopped")
        since = "" if is_over else f" {duration_text(shown._clock() - shown._phase_since)}"
        texts = {"description": f"{shown._phase}{since}", "position": shown._position()}
        for task in self.task_ids:  # the first call comes before there is one
            self.update(task, completed=shown._done, **texts)
        facts = [Text.assemble((f"{name} ", "dim"), value) for name, value in shown._facts().items()]
        if sum(map(len, texts.values())) + _BAR_WIDTH + 4 <= shown._console.width:  # the spinner and three spaces
            yield from super().get_renderables()
        else:
            position = texts["position"].strip().split("  ")
            facts = [*map(Text, (texts["description"], *position)), *facts]
        yield from _lines(facts, shown._console.width)


def _lines(facts: Iterable[Text], width: int) -> list[Text]:
    """As many facts in each line as fit, none broken over two lines."""
    lines = [Text()]
    for fact in facts:
        if lines[-1] and len(lines[-1]) + 2 + len(fact) > width:
            lines.append(Text())
        lines[-1].append("  " if lines[-1] else "").append_text(fact)
    return lines


def _latest(metrics: Mapping[str, np.ndarray], kl_budget: float | None) -> dict[str, str]:
    texts = {}
    if "episode_return" in metrics:
        returns = np.asarray(metrics["episode_return"])[:, -1]
        texts["return"] = _median_and_range(returns[np.isfinite(returns)])
    if "kl_total" in metrics:
        kl = np.asarray(metrics["kl_total"])
        texts |= {"KL": _mean(kl)} if kl_budget is None else {"KL/budget": _percent(kl / kl_budget)}
    if "clip_fraction" in metrics:
        texts["beyond clip"] = _percent(np.asarray(metrics["clip_fraction"]))
    if "step_fraction" in metrics:
        fraction = np.asarray(metrics["step_fraction"])
        texts["accepted"] = _percent(np.where(np.isfinite(fraction), fraction > 0, np.nan))
    if "replay_fill" in metrics:
        texts["Q"] = _mean(np.asarray(metrics["q_mean"])[:, -1])
        texts["replay"] = _percent(np.asarray(metrics["replay_fill"])[:, -1])
    return texts


def _median_and_range(values: np.ndarray) -> str:
    if not values.size:
        return "-"
    median = _number(np.median(values))
    return median if values.size == 1 else f"{median} ({_number(values.min())} to {_number(values.max())})"


def _mean(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return _number(finite.mean()) if finite.size else "-"


def _percent(shares: np.ndarray) -> str:
    finite = shares[np.isfinite(shares)]
    return f"{100 * finite.mean():.0f} %" if finite.size else "-"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _short(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:,.0f}"
