"""What a sweep tries: the grid's order, and draws that can be made again."""

import numpy as np
import pytest

import marl_kl
from marl_kl.training.search import make_settings

CONFIG = marl_kl.TrustRegionConfig()
RANDOM = {"kl_budget": marl_kl.log_uniform(0.01, 0.3), "gamma": marl_kl.uniform(0.9, 1.0)}


def drawn(name="kl_budget", random=RANDOM, samples=16, **options):
    settings = make_settings(CONFIG, {}, random=random, samples=samples, **options)
    return [setting.fields[name] for setting in settings]


def test_a_grid_is_all_combinations_the_last_field_fastest():
    settings = make_settings(CONFIG, {"num_envs": 8}, {"gamma": np.array([0.9, 0.99]), "hidden_sizes": [[8], (4, 4)]})
    wanted = [(gamma, sizes) for gamma in (0.9, 0.99) for sizes in ((8,), (4, 4))]
    assert [tuple(setting.fields.values()) for setting in settings] == wanted
    assert [(s.config.gamma, s.config.hidden_sizes, s.config.num_envs) for s in settings] == [(*w, 8) for w in wanted]


def test_draws_can_be_made_again():
    assert drawn() == drawn() != drawn(search_seed=1)
    assert drawn(samples=32)[:16] == drawn(), "more samples add to the draws"
    assert drawn(random={"kl_budget": RANDOM["kl_budget"]}) == drawn(), "another field leaves them as they are"


def test_every_point_of_the_grid_has_the_same_draws():
    settings = make_settings(CONFIG, {}, {"gae_lambda": [0.9, 0.95]}, {"kl_budget": RANDOM["kl_budget"]}, 3)
    assert [s.fields["gae_lambda"] for s in settings] == [0.9] * 3 + [0.95] * 3
    assert [s.fields["kl_budget"] for s in settings] == drawn(samples=3) * 2


def test_the_distributions_match_their_names():
    """Kolmogorov's distance of 4,000 draws from the distribution: above 0.032 once in a thousand."""
    n = 4_000
    ranks = np.arange(1, n + 1) / n
    logs = np.sort(np.log(drawn(samples=n)))
    assert np.abs((logs - np.log(0.01)) / np.log(30) - ranks).max() < 0.032
    assert np.abs((np.sort(drawn("gamma", samples=n)) - 0.9) / 0.1 - ranks).max() < 0.032
    sizes = drawn("hidden_sizes", {"hidden_sizes": marl_kl.choice([[8], [4, 4]])}, n)
    assert set(sizes) == {(8,), (4, 4)} and abs(sizes.count((8,)) / n - 0.5) < 3.3 * 0.5 / np.sqrt(n)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: marl_kl.log_uniform(0.0, 1.0), r"log_uniform\(0.0, 1.0\); it must have two finite numbers, 0 < low"),
        (lambda: marl_kl.uniform(1, 1), r"uniform\(1, 1\); it must have two finite numbers, low < high"),
        (lambda: marl_kl.uniform("a", 1), r"uniform\('a', 1\)"),
        (lambda: marl_kl.uniform(0, float("inf")), r"uniform\(0, inf\)"),
        (lambda: marl_kl.choice([]), r"choice's values is \[\]"),
        (lambda: drawn("num_envs", {"num_envs": marl_kl.uniform(8, 9)}), r"num_envs=8\.\d+; it must be an integer"),
    ],
)
def test_invalid_distributions_give_a_one_line_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
