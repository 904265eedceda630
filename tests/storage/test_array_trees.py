"""Trees of arrays: flat and back, and one line about what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl_kl.storage import array_trees
from marl_kl.storage.files import RunFolderError
from tests.support.example_state import example_state


def test_a_tree_comes_back_in_the_template_s_structure():
    state = example_state()
    leaves = {name: leaf for name, leaf in array_trees.flatten_tree(state).items() if leaf.size}
    back = array_trees.restore_tree(jax.eval_shape(lambda: state), leaves, "it")
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for found, wanted in zip(jax.tree.leaves(back), jax.tree.leaves(state)):
        assert found.dtype == wanted.dtype
        data = jax.random.key_data if jax.dtypes.issubdtype(wanted.dtype, jax.dtypes.prng_key) else np.asarray
        np.testing.assert_array_equal(data(found), data(wanted))
    assert array_trees.flatten_tree(jnp.ones(3)).keys() == {"value"}


def test_host_copies_do_not_share_memory_with_theexample_state():
    array = jnp.ones(1000)
    assert not np.shares_memory(array_trees.flatten_tree(array)["value"], np.asarray(array))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state._replace(actors={}), "which this run does not have"),
        (lambda state: state._replace(empty=jnp.ones((3, 2))), "it lacks 'empty'"),
        (lambda state: example_state(seeds=4), r"with shape .*; this run needs"),
        (lambda state: state._replace(odd=((), [jnp.zeros(3)] * 2, None, np.ones(3, bool))), "as int32; this run"),
    ],
)
def test_a_tree_that_does_not_fit_is_named(change, message):
    stored = {name: leaf for name, leaf in array_trees.flatten_tree(example_state()).items() if leaf.size}
    with pytest.raises(RunFolderError, match=message) as error:
        array_trees.restore_tree(change(example_state()), stored, "it")
    assert "\n" not in str(error.value)


def test_other_numbers_have_another_digest():
    trees = ((), jnp.zeros(2), jnp.zeros((1, 2)), jnp.ones(2), {"a": jnp.ones(2)})
    digests = set(map(array_trees.digest, trees))
    assert len(digests) == 5 and array_trees.digest(np.ones(2, np.float32)) in digests
