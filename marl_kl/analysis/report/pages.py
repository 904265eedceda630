"""`report`: a run or a sweep as one self-contained HTML page, from the templates next to this file."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import envs
from envs.base import Env, EnvSpec
from envs.pictures import agent_colours
from marl_kl import __version__
from marl_kl.analysis import diagnostics, run_figures, summary, sweep_figures, sweep_tables
from marl_kl.analysis.decoration import decoration
from marl_kl.analysis.figure_style import binned_means, figure_bytes, healthy_seeds
from marl_kl.analysis.report import report_figures
from marl_kl.analysis.text_tables import percent_text
from marl_kl.config import Config
from marl_kl.results import SweepResult, TrainResult, what_failed
from marl_kl.storage import run_folder, run_record, stored_runs, stored_sweeps
from marl_kl.storage.files import write_file

NAME = "report.html"
_DRAWN_SETTINGS = 3
"""Settings of a sweep whose agents have figures, best first."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("marl_kl.analysis.report", ""), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_TEMPLATES.globals["what_failed"] = what_failed


class _Steps(NamedTuple):
    """A heat map agents x updates: what it shows, and its `_svg`."""

    name: str
    content: str | None


def write(out: str | os.PathLike, to: str | os.PathLike | None = None) -> Path:
    """Writes the page of the run or the sweep in the folder `out`.

    Args:
        out: the folder.
        to: the file; None: `report.html` in the folder.

    Returns:
        The file.

    Raises:
        RunFolderError: no readable run or sweep there, or the file cannot be written.
    """
    out = Path(out)
    to = out / NAME if to is None else Path(to)
    write_file(to, sweep_page(out) if run_folder.is_sweep(out) else run_page(out))
    return to


def run_page(out: str | os.PathLike) -> str:
    """The page of a run, finished or interrupted."""
    record = run_record.read_record(out)
    result = stored_runs.read_result(out, record)
    env, colours = _body_and_colours(record.spec)
    per_seed, over_seeds = summary.rows(result)
    header, row = summary.header(result), (over_seeds or per_seed)[0]
    columns = _agent_columns(result)
    return _TEMPLATES.get_template("run.html.jinja").render(
        **_shared_context(record),
        title=f"{record.algorithm} on {record.spec.name}",
        times=summary.run_notes(result)[:2],
        failures=result.failures,
        cards=dict(zip(header[1:], row[1:])) | {"env steps per seed": f"{result.env_steps.max(initial=0):,}"},
        learning_curve=_svg(run_figures.learning_curve, result),
        diagnostics=_svg(diagnostics.figure, result) if diagnostics.has_diagnostics(result) else None,
        advice=diagnostics.advice(result) if diagnostics.has_diagnostics(result) else [],
        header=header,
        per_seed=per_seed,
        over_seeds=over_seeds,
        meanings=summary.meanings(result),
        body=_body_svg(env),
        colours=colours,
        agent_header=list(columns),
        agent_rows=list(zip(*columns.values())),
        kl_share=_kl_share(result, colours),
        steps=_steps(result, colours),
    )


def sweep_page(out: str | os.PathLike) -> str:
    """The page of a sweep, finished or interrupted."""
    record = run_record.read_record(out, run_record.SWEEP)
    result = stored_sweeps.read(out)
    env, colours = _body_and_colours(record.spec)
    settings = _settings_with_shares(result)
    agent_header, agent_rows = _setting_table(result, settings)
    best = [
        {
            "prefix": f"Setting {k} ({sweep_tables.setting_text(result, k)}). ",
            "kl_share": _kl_share(one, colours),
            "steps": _steps(one, colours),
        }
        for k, one in list(settings.items())[:_DRAWN_SETTINGS]
    ]
    has_curves = "episode_return" in result.metrics
    return _TEMPLATES.get_template("sweep.html.jinja").render(
        **_shared_context(record, swept=list(result.settings[0])),
        title=sweep_tables.title(result),
        times=sweep_tables.times(result),
        failures=result.failures,
        size=sweep_tables.size(result),
        header=sweep_tables.header(result),
        rows=sweep_tables.rows(result),
        meaning=sweep_tables.MEANING,
        returns_by_field=_svg(sweep_figures.returns_by_field, result) if sweep_figures.has_returns(result) else None,
        curves=_svg(report_figures.sweep_curves, result) if has_curves else None,
        num_coloured=report_figures.COLOURED_SETTINGS,
        body=_body_svg(env),
        agent_header=agent_header,
        agent_rows=agent_rows,
        best=best,
    )


def _shared_context(record: run_record.RunRecord, swept: Sequence[str] = ()) -> dict[str, Any]:
    """What the skeleton of a page shows of a run or a sweep."""
    session = run_record.last_session(record.document)
    config_rows = _config_rows(record.config, swept)
    changed = [k for k, (name, value, default, _) in enumerate(config_rows) if value != default and name not in swept]
    return {
        "record": record,
        "session": session,
        "swept": swept,
        "config_rows": config_rows,
        "changed_rows": changed,
        "changed_fields": [config_rows[k][0] for k in changed],
        "env_rows": _env_rows(record.spec),
        "versions": [(name, version or "-") for name, version in session["versions"].items()],
        "marl_kl_version": __version__,
    }


def _config_rows(config: Config, swept: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Name, value, default and meaning of every field."""
    return [
        (
            field.name,
            "swept" if field.name in swept else sweep_tables.cell(getattr(config, field.name)),
            sweep_tables.cell(field.default),
            field.metadata["help"],
        )
        for field in dataclasses.fields(config)
    ]


def _env_rows(spec: EnvSpec) -> list[tuple[str, Any]]:
    return [
        ("name", spec.name), ("agents", ", ".join(spec.agents)), ("actions", spec.action_kind),
        ("state size", spec.state_size), ("episode length", f"at most {spec.episode_length} env steps"),
        ("reward", "of the team" if spec.team_reward else "per agent"), *spec.metadata,
        *((f"option {name}", value) for name, value in spec.options or ()),
    ]  # fmt: skip


# Agents


def _agent_columns(result: TrainResult) -> dict[str, Sequence]:
    """Header -> a cell per agent: sizes, and means over updates and healthy seeds."""
    spec = result.spec
    kind = "action dimensions" if spec.action_kind == "continuous" else "choices"
    columns = {"agent": spec.agents, "observation": spec.observation_sizes, kind: spec.action_sizes}
    means = {name: _mean_by_agent(result, values) for name, values in _shares(result).items()}
    return columns | {name: list(map(percent_text, values)) for name, values in means.items()}


def _shares(result: TrainResult) -> dict[str, np.ndarray]:
    """Header -> [S, U, N] shares in [0, 1], as far as the algorithm reports them."""
    metrics, budget = result.metrics, getattr(result.config, "kl_budget", None)
    shares = {}
    if budget is not None:
        columns = {"KL allocated": "kl_threshold", "KL spent": "kl"}
        shares |= {column: metrics[name] / budget for column, name in columns.items() if name in metrics}
    if "step_fraction" in metrics:
        fraction = metrics["step_fraction"]
        shares["steps accepted"] = np.where(np.isfinite(fraction), fraction > 0, np.nan)
    if "clip_fraction" in metrics:
        shares["samples beyond clip"] = metrics["clip_fraction"]
    return shares


def _mean_by_agent(result: TrainResult, values: np.ndarray) -> np.ndarray:
    """[S, U, N] -> [N] means over healthy seeds and updates; NaN if there are none."""
    healthy = values[healthy_seeds(result)].reshape(-1, values.shape[-1])
    if not len(healthy):
        return np.full(values.shape[-1], np.nan)
    return binned_means(healthy.T, np.array([0, len(healthy)]))[:, 0]


def _settings_with_shares(result: SweepResult) -> dict[int, TrainResult]:
    """Settings with updates and a healthy seed, best first; empty if no metrics per agent are stored."""
    settings = {k: result.setting(k) for k in sweep_tables.ranking(result)}
    settings = {k: one for k, one in settings.items() if len(one.env_steps) and healthy_seeds(one).any()}
    return settings if any(_shares(one) for one in settings.values()) else {}


def _setting_table(result: SweepResult, settings: dict[int, TrainResult]) -> tuple[list[str], list[list]]:
    """Header and rows: means over updates and healthy seeds; KL summed over agents, other shares averaged."""
    shares = {
        k: {name: _mean_by_agent(one, values) for name, values in _shares(one).items()} for k, one in settings.items()
    }
    names = list(dict.fromkeys(name for by_name in shares.values() for name in by_name))

    def cell(by_name: dict[str, np.ndarray], name: str) -> str:
        reduce: Callable = np.sum if name.startswith("KL") else np.mean
        return percent_text(reduce(by_name.get(name, np.nan)))

    rows = [
        [k, sweep_tables.setting_text(result, k), *(cell(by_name, name) for name in names)]
        for k, by_name in shares.items()
    ]
    return ["setting", "", *names], rows


# Figures


def _svg(draw: Callable[..., Figure], *arguments) -> str | None:
    """The figure in base64, for a data URI; None, with a `RunWarning`, if it cannot be drawn."""
    with decoration(f"figure '{draw.__name__}' in the report"):
        return base64.b64encode(figure_bytes(draw(*arguments), "svg")).decode()


def _body_svg(env: Env | None) -> str | None:
    return None if env is None else _svg(report_figures.body, env)


def _kl_share(result: TrainResult, colours: Sequence[str] | None) -> str | None:
    if not run_figures.has_kl_share(result) or not len(result.env_steps):
        return None
    return _svg(run_figures.kl_share, result, colours)


def _steps(result: TrainResult, colours: Sequence[str] | None) -> _Steps | None:
    """Accepted steps or clipped samples by agent; None if all seeds failed or there was no update."""
    if not healthy_seeds(result).any() or not len(result.env_steps):
        return None
    shares = _shares(result)
    for column, name in (
        ("steps accepted", "Line searches that found a step"),
        ("samples beyond clip", "Samples beyond the clip"),
    ):
        if column in shares:
            what = name[0].lower() + name[1:]
            return _Steps(name, _svg(report_figures.agent_map, result, shares[column], what, colours))
    return None


def _body_and_colours(spec: EnvSpec) -> tuple[Env | None, list[str] | None]:
    """The environment of a body, to be drawn, and its agents' colours; None for other environments."""
    env = _body(spec)
    return env, None if env is None else [to_hex(colour) for colour in agent_colours(spec.num_agents)]


def _body(spec: EnvSpec) -> Env | None:
    if "body" not in dict(spec.metadata) or spec.options is None:
        return None
    try:
        env = envs.make(spec.name, **dict(spec.options))
    except (ValueError, TypeError, ModuleNotFoundError):  # stored by another version, or its physics is not installed
        return None
    return env if env.drawing is not None and env.spec.agents == spec.agents else None
