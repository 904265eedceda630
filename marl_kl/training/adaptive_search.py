"""Settings chosen round by round by a sampler of Optuna, each round from the results of those before.

The study is made anew for every round, of the stored results and of a sampler seeded by the round: the next settings are a
function of both, so that a search resumes to what it would have been, without a database.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from envs.validation import check_integer, imported, is_path
from marl_kl.config import Config
from marl_kl.storage.shards import Setting
from marl_kl.training.search import MAX_SETTINGS, Distribution, check_swept, make_setting, refuse_no_distribution

TPE = "tpe"


class Search(NamedTuple):
    """What is searched, and how.

    Attributes:
        config: what is not searched.
        space: traced field -> the distribution whose range is searched.
        samples: settings per round. rounds: how many.
        sampler: `TPE`, or the path of a class of Optuna.
        seed: of all rounds.
    """

    config: Config
    space: dict[str, Distribution]
    samples: int
    rounds: int
    sampler: str
    seed: int

    @property
    def document(self) -> dict[str, Any]:
        """What identifies it, for `sweep.json`; `samples` and `search_seed` are those of every sweep."""
        texts = {name: distribution.text for name, distribution in self.space.items()}
        return {"search": texts, "rounds": self.rounds, "sampler": self.sampler}

    def setting(self, fields: Mapping[str, Any]) -> Setting:
        """The setting with these values."""
        return make_setting(self.config, {}, fields)

    def next_round(self, before: Sequence[Setting], scores: Sequence[float]) -> tuple[Setting, ...]:
        """The settings of the next round.

        Args:
            before: the settings of all rounds so far.
            scores: of each; higher is better, -inf if it failed.
        """
        optuna = _optuna()
        space = {name: _as_optuna(optuna, distribution) for name, distribution in self.space.items()}
        with _quiet(optuna):
            study = optuna.create_study(direction="maximize", sampler=self._made_sampler(optuna, len(before)))
            for setting, score in zip(before, scores):
                params = {name: setting.fields[name] for name in space}
                study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=score))
            return tuple(self.setting(study.ask(space).params) for _ in range(self.samples))

    def _made_sampler(self, optuna: Any, number_before: int) -> Any:
        seed = int(np.random.SeedSequence([self.seed, number_before]).generate_state(1)[0])
        if self.sampler != TPE:
            return imported(self.sampler, "sampler")(seed=seed)
        # the first round is random; settings without a result yet count as bad, which spreads a round
        options = {"n_startup_trials": self.samples, "constant_liar": True, "multivariate": True}
        return optuna.samplers.TPESampler(seed=seed, **options)


def make_search(
    config: Config,
    fixed: Mapping[str, Any],
    space: Mapping[str, Distribution],
    samples: int | None,
    rounds: int | None,
    sampler: str,
    search_seed: int,
) -> Search:
    """A search whose every setting is valid.

    Args:
        config, fixed: as for `search.make_settings`.
        space: traced field -> `log_uniform`, `uniform` or `choice`.
        samples: settings per round. rounds: how many.
        sampler: `TPE`, or the path of a class of Optuna that is made by `seed` and chooses by results alone
            ("optuna.samplers:GPSampler").
        search_seed: an integer >= 0.

    Raises:
        ValueError: an unknown field, one that is not traced, a range that reaches beyond the field's, ...: one line.
        ModuleNotFoundError: Optuna is not installed.
    """
    space = check_swept("search", space, fixed)
    if not space:
        raise ValueError("search is empty; give search={field: distribution}")
    config = config.replace(**fixed)
    config.refuse_unknown(space)
    samples, rounds = check_integer("samples", samples, 1), check_integer("rounds", rounds, 1)
    check_integer("search_seed", search_seed, 0)
    if samples * rounds > MAX_SETTINGS:
        raise ValueError(
            f"these are {samples * rounds} settings, samples times rounds; at most {MAX_SETTINGS} are taken"
        )
    if sampler != TPE and not (isinstance(sampler, str) and is_path(sampler)):
        raise ValueError(f"sampler={sampler!r}; it must be {TPE!r} or a path, such as 'optuna.samplers:GPSampler'")
    for name, distribution in space.items():
        refuse_no_distribution("search", name, distribution)
        if name not in config.traced_fields:
            raise ValueError(
                f"'{name}' cannot be searched: another value needs another program; accepted: "
                f"{', '.join(config.traced_fields)}"
            )
        values = [getattr(config.replace(**{name: value}), name) for value in distribution.values]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"search[{name!r}] is {distribution.text}; all values must be finite")
        space[name] = distribution._replace(values=tuple(values))
    _optuna()
    return Search(config, space, samples, rounds, sampler, search_seed)


def _as_optuna(optuna: Any, distribution: Distribution) -> Any:
    if distribution.kind == "choice":
        return optuna.distributions.CategoricalDistribution(distribution.values)
    return optuna.distributions.FloatDistribution(*distribution.values, log=distribution.kind == "log_uniform")


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise ModuleNotFoundError("search needs Optuna: pip install 'marl_kl[search]'") from None
    return optuna


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without Optuna's reports of studies and its notes on what it calls experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
