"""`report`: what a run or a sweep was and did, as one HTML page that stands for itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import envs
from envs.base import Env, EnvSpec
from marl_kl import __version__
from marl_kl.analysis import plots, summary
from marl_kl.analysis import sweep_tables as sweep_tables
from marl_kl.analysis.bodies import drawing
from marl_kl.analysis.comparison.output import picture
from marl_kl.analysis.report import html_page, pictures
from marl_kl.analysis.report.html_page import Markup, Section
from marl_kl.config import Config
from marl_kl.results import SweepResult, TrainResult, what_failed
from marl_kl.storage import run_folder, stored_runs
from marl_kl.storage import stored_sweeps as sweep_folders
from marl_kl.storage.files import write_file

NAME = "report.html"
_DRAWN_SETTINGS = 3
"""Settings of a sweep whose agents have pictures, best first."""

_INTERVAL = "the 95 % percentile bootstrap interval of the interquartile mean over seeds, from three seeds on"


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
    record = run_folder.read_record(out)
    result = stored_runs.read_result(out, record)
    env, colours = _body_and_colours(record.spec)
    lead = [_what_it_was(record), *_failures(result), _run_cards(result)]
    sections = [
        Section("Learning", _learning(result)),
        Section("Agents", _agents(result, env, colours)),
        Section("Steps", _steps(result, colours)),
        Section("How fast", [*map(html_page.paragraph, summary.stored_facts(result)[:2]), _device(record)]),
        *_settings_sections(record),
    ]
    title = f"{record.algorithm} on {record.spec.name}"
    return html_page.page(title, lead, [section for section in sections if section.parts])


def sweep_page(out: str | os.PathLike) -> str:
    """The page of a sweep, finished or interrupted."""
    record = run_folder.read_record(out, run_folder.SWEEP)
    result = sweep_folders.read(out)
    env, colours = _body_and_colours(record.spec)
    failed = [
        html_page.paragraph(f"setting {f.setting}, seed {f.seed} failed: {what_failed(f)}", "bad")
        for f in result.failures
    ]
    table = html_page.table(sweep_tables.header(result), sweep_tables.rows(result), numbers=True)
    meaning = html_page.paragraph(f"{sweep_tables.MEANING}.", "soft")
    extent = map(html_page.paragraph, sweep_tables.extent(result))
    sections = [
        Section("Settings, best first", [*failed, *extent, table, meaning]),
        Section("Curves", _sweep_curves(result)),
        Section("Agents", _sweep_agents(result, env, colours)),
        Section("How fast", [*map(html_page.paragraph, sweep_tables.times(result)), _device(record)]),
        *_settings_sections(record, swept=list(result.settings[0])),
    ]
    sections = [section for section in sections if section.parts]
    return html_page.page(sweep_tables.title(result), [_what_it_was(record)], sections)


# What was done


def _what_it_was(record: run_folder.RunRecord) -> Markup:
    document = record.document
    seeds = ", ".join(map(str, record.seeds))
    until = f" to {document['ended']}" if document.get("ended") else ""
    resumed = f"; resumed {len(document['resumed'])} times" if document.get("resumed") else ""
    what = f"{record.status}; {document['started']}{until}{resumed}; seeds {seeds}"
    return html_page.paragraph(what, "soft" if record.status == "finished" else "bad")


def _failures(result: TrainResult) -> list[Markup]:
    return [
        html_page.paragraph(
            f"Seed {failure.seed} failed: {what_failed(failure)}. It kept its last finite parameters and is left out "
            "of pictures and of rows over seeds.", "bad",
        )
        for failure in result.failures
    ]  # fmt: skip


def _run_cards(result: TrainResult) -> Markup:
    """The row over seeds of the run's table, or that of its only seed."""
    per_seed, over_seeds = summary.rows(result)
    row = (over_seeds or per_seed)[0]
    steps = f"{int(result.env_steps[-1]):,}" if len(result.env_steps) else "0"
    cells = dict(zip(summary.header(result)[1:], row[1:]))
    return html_page.cards(
        {"return, untrained": cells.pop("untrained"), "return at the end": cells.pop("final"),
         "return in training": cells.pop("training"), **cells, "env steps per seed": steps}
    )  # fmt: skip


def _learning(result: TrainResult) -> list[Markup]:
    per_seed, over_seeds = summary.rows(result)
    curve = _picture(
        plots.learning_curve(result), f"Learning curve of {result.algorithm} on {result.spec.name}",
        "Team return of an episode against env steps per seed. Blue: evaluation episodes, whose actions are not "
        f"sampled; band or bars: {_INTERVAL}. Grey: training episodes, whose actions are; band: range over seeds.",
    )  # fmt: skip
    table = html_page.table(
        summary.header(result), [*per_seed, *over_seeds], numbers=True,
        marked=range(len(per_seed), len(per_seed) + len(over_seeds)),
    )  # fmt: skip
    return [curve, table, html_page.paragraph(f"{summary.meanings(result)}.", "soft")]


def _agents(result: TrainResult, env: Env | None, colours: Sequence[str] | None) -> list[Markup]:
    return [*_body_picture(env), _agent_table(result, colours), *_kl_share(result, colours)]


def _body_picture(env: Env | None) -> list[Markup]:
    if env is None:
        return []
    what = f"The body of {env.spec.name}, limbs coloured by agent"
    return [_picture(pictures.body(env), what, "Who moves which limb.")]


def _kl_share(result: TrainResult, colours: Sequence[str] | None, of: str = "") -> list[Markup]:
    """of: whose it is, before the caption and what the picture shows; nothing if there is nothing to draw."""
    if not plots.has_kl_share(result) or not len(result.env_steps):
        return []
    what = f"{of}Share of the KL budget by agent: {', '.join(result.spec.agents)}"
    caption = (
        f"{of}Which share of the team's joint KL budget each agent was given, update by update, and what the team "
        "spent of it. The panel on the right shows single updates of single seeds, which a mean hides."
    )
    return [_picture(plots.kl_share(result, colours), what, caption)]


def _agent_table(result: TrainResult, colours: Sequence[str] | None) -> Markup:
    """A row per agent: its sizes, and means over updates and healthy seeds."""
    spec = result.spec
    names = spec.agents if colours is None else list(map(html_page.swatch, colours, spec.agents))
    kind = "action dimensions" if spec.action_kind == "continuous" else "choices"
    columns = {"agent": names, "observation": spec.observation_sizes, kind: spec.action_sizes}
    columns |= {name: [_percent(x) for x in _over_agents(result, values)] for name, values in _shares(result).items()}
    return html_page.table(list(columns), list(zip(*columns.values())), numbers=True)


def _shares(result: TrainResult) -> dict[str, np.ndarray]:
    """[S, U, N] shares in [0, 1] of what the algorithm reports, by the name of their column."""
    metrics, budget = result.metrics, getattr(result.config, "kl_budget", None)
    found = {}
    if budget is not None:
        of_budget = {"KL given": "kl_threshold", "KL spent": "kl"}
        found |= {column: metrics[name] / budget for column, name in of_budget.items() if name in metrics}
    if "step_fraction" in metrics:
        found["steps accepted"] = _accepted(result)
    if "clip_fraction" in metrics:
        found["samples beyond clip"] = metrics["clip_fraction"]
    return found


def _accepted(result: TrainResult) -> np.ndarray:
    fraction = result.metrics["step_fraction"]
    return np.where(np.isfinite(fraction), fraction > 0, np.nan)


def _over_agents(result: TrainResult, values: np.ndarray) -> np.ndarray:
    """[S, U, N] -> [N] means over healthy seeds and updates; NaN where there are none."""
    healthy = values[plots.healthy_seeds(result)].reshape(-1, values.shape[-1])
    return (
        plots.binned_means(healthy.T, np.array([0, len(healthy)]))[:, 0]
        if len(healthy)
        else np.full(values.shape[-1], np.nan)
    )


def _steps(result: TrainResult, colours: Sequence[str] | None, of: str = "") -> list[Markup]:
    """What became of each agent's steps; nothing if nobody stayed finite or there was no update."""
    if not plots.healthy_seeds(result).any() or not len(result.env_steps):
        return []
    if "step_fraction" in result.metrics:
        what, shares = "line searches that found a step", _accepted(result)
        caption = (
            "Where a line search finds no step the agent keeps its parameters. Well below 100 %: steps are too long "
        )
        caption += "for the local model (lower kl_budget, or use a larger cg_subsample)."
    elif "clip_fraction" in result.metrics:
        what, shares = "samples beyond the clip", result.metrics["clip_fraction"]
        caption = "Share of the samples whose probability ratio ended further than clip_eps from 1."
    else:
        return []
    return [_picture(pictures.agent_map(result, shares, what, colours), of + what.capitalize(), of + caption)]


def _sweep_curves(result: SweepResult) -> list[Markup]:
    if "episode_return" not in result.metrics:
        return [html_page.paragraph("This sweep was stored without curves, or has not come so far.", "soft")]
    caption = (
        f"Team return of a training episode against env steps per seed: interquartile mean over seeds; bands: "
        f"{_INTERVAL}. The best {pictures.NAMED_SETTINGS} settings by their final evaluation have colours."
    )
    return [_picture(pictures.sweep_curves(result), "Learning curves by setting", caption)]


def _sweep_agents(result: SweepResult, env: Env | None, colours: Sequence[str] | None) -> list[Markup]:
    """A row per setting, and what the best settings gave their agents and what these made of it; nothing of a sweep
    that was stored without metrics of agents."""
    by_setting = {k: result.setting(k) for k in sweep_tables.ranking(result)}
    drawn = {k: one for k, one in by_setting.items() if len(one.env_steps) and plots.healthy_seeds(one).any()}
    if not any(_shares(one) for one in drawn.values()):
        return []
    parts = [*_body_picture(env), _sweep_agent_table(result, drawn)]
    for k, one in list(drawn.items())[:_DRAWN_SETTINGS]:
        of = f"Setting {k} ({sweep_tables.named(result, k)}). "
        parts += [*_kl_share(one, colours, of), *_steps(one, colours, of)]
    left = len(drawn) - _DRAWN_SETTINGS
    if left > 0:
        parts.append(html_page.paragraph(f"The {left} other settings are in the table alone.", "soft"))
    return parts


def _sweep_agent_table(result: SweepResult, drawn: Mapping[int, TrainResult]) -> Markup:
    """Means over updates and healthy seeds: of the team's KL in percent of its budget, of all agents else."""
    rows = []
    for k, one in drawn.items():
        over_agents = {name: _over_agents(one, values) for name, values in _shares(one).items()}
        team = {name: x.sum() if name.startswith("KL") else x.mean() for name, x in over_agents.items()}
        rows.append((k, team))
    names = list(dict.fromkeys(name for _, team in rows for name in team))
    cells = [
        [k, sweep_tables.named(result, k), *(_percent(team.get(name, np.nan)) for name in names)] for k, team in rows
    ]
    return html_page.table(["setting", "", *names], cells, numbers=True)


# With what


def _settings_sections(record: run_folder.RunRecord, swept: Sequence[str] = ()) -> list[Section]:
    versions = run_folder.last_session(record.document)["versions"]
    return [
        Section("Config", [_config_table(record.config, swept)]),
        Section("Environment", [_env_table(record.spec)]),
        Section("Versions", [
            html_page.table(["package", "version"], [(name, version or "-") for name, version in versions.items()]),
            html_page.paragraph(f"This page was made by marl_kl {__version__}.", "soft"),
        ]),
    ]  # fmt: skip


def _config_table(config: Config, swept: Sequence[str]) -> Markup:
    """All fields as they were resolved; those that are not at their default are set off."""
    rows, changed = [], []
    for index, field in enumerate(dataclasses.fields(config)):
        value = "swept" if field.name in swept else sweep_tables.cell(getattr(config, field.name))
        default = sweep_tables.cell(field.default)
        changed += [index] * (value != default and field.name not in swept)
        rows.append([Markup(f"<code>{html_page.text(field.name)}</code>"), value, default, field.metadata["help"]])
    table = html_page.table(["field", "value", "default", "meaning"], rows, marked=changed)
    names = [dataclasses.fields(config)[index].name for index in changed]
    said = [f"Swept: {', '.join(swept)}."] * bool(swept)
    said.append(
        f"Not at their default: {', '.join(names)}." if names else f"All{' others' * bool(swept)} at their default."
    )
    return Markup(html_page.paragraph(" ".join(said)) + html_page.details("all fields", [table]))


def _env_table(spec: EnvSpec) -> Markup:
    facts = {
        "name": spec.name, "agents": ", ".join(spec.agents), "actions": spec.action_kind, "state size": spec.state_size,
        "longest episode": f"{spec.episode_length} env steps",
        "reward": "of the team" if spec.team_reward else "per agent",
        **dict(spec.metadata), **{f"option {name}": value for name, value in spec.options or ()},
    }  # fmt: skip
    return html_page.table(["", ""], list(facts.items()))


def _device(record: run_folder.RunRecord) -> Markup:
    device = run_folder.last_session(record.document)["device"]
    return html_page.paragraph(f"{device['count']} x {device['kind']} ({device['platform']})")


def _body_and_colours(spec: EnvSpec) -> tuple[Env | None, list[str] | None]:
    """The body to be drawn, and the colours of its agents; none of an environment that is no body."""
    env = _body(spec)
    return env, None if env is None else [to_hex(colour) for colour in drawing.colours(spec.num_agents)]


def _body(spec: EnvSpec) -> Env | None:
    """The environment, made again to be drawn; None if it is no body, or cannot be made here."""
    if "body" not in dict(spec.metadata) or spec.options is None:
        return None
    try:
        env = envs.make(spec.name, **dict(spec.options))
    except (ValueError, TypeError, ModuleNotFoundError):  # another version's, or one whose physics is not installed
        return None
    return env if env.drawing is not None and env.spec.agents == spec.agents else None


def _picture(figure: Figure, alternative: str, caption: str) -> Markup:
    return html_page.picture(picture(figure, "svg"), "svg", alternative, caption)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if np.isfinite(share) else "-"
