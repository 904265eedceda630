"""Trees of arrays as flat dicts, by the path of each leaf, whatever the containers (NamedTuples, dataclasses, dicts).

Typed PRNG keys are stored as their data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from marl_kl import processes
from marl_kl.storage.files import RunFolderError

_SINCE_0_2 = (
    *(
        f"{tree}algorithm.{name}"
        for tree in ("", "learner.")
        for name in ("total", "squares", "weight", "weight_squares")
    ),
    "updates",
    "num_updates",
)
"""Leaves that older checkpoints lack: the averages of utilities, where zero means none yet, and counts that are set anew."""


def flatten_tree(tree: Any) -> dict[str, np.ndarray]:
    """Host copies of `named_leaves`; of arrays in several processes by all of these."""
    return {name: np.array(processes.on_host(leaf)) for name, leaf in named_leaves(tree).items()}


def named_leaves(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their path (`learner.actors.params.Dense_0.kernel`); keys as their data."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = _leaf_name(path)
        if name in leaves:
            raise ValueError(f"two leaves have the path '{name}'")
        leaves[name] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return leaves


def digest(tree: Any) -> str:
    """A short hash of the arrays in a tree."""
    total = hashlib.sha256()
    for name, leaf in flatten_tree(tree).items():
        total.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return total.hexdigest()[:16]


def subtree(leaves: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The subtree `name` of a flat tree, flat."""
    return {path.removeprefix(f"{name}."): leaf for path, leaf in leaves.items() if path.startswith(f"{name}.")}


def restore_tree(template: Any, leaves: Mapping[str, np.ndarray], source: str) -> Any:
    """The inverse of `flatten_tree`.

    Args:
        template: a pytree of arrays or `jax.ShapeDtypeStruct`s (from `jax.eval_shape`, say).
        leaves: leaf path -> array; arrays without elements may be missing.
        source: the origin of `leaves`, for messages.

    Returns:
        numpy arrays in the structure of `template`; typed PRNG keys are jax arrays.

    Raises:
        RunFolderError: `leaves` are those of another tree.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {_leaf_name(path): leaf for path, leaf in paths}
    surplus = sorted(set(leaves) - set(wanted))
    if surplus:
        raise RunFolderError(f"{source} holds '{surplus[0]}', which this run does not have")
    return jax.tree_util.tree_unflatten(
        structure, [_restore_leaf(name, leaf, leaves, source) for name, leaf in wanted.items()]
    )


def _restore_leaf(name: str, wanted, leaves: Mapping[str, np.ndarray], source: str):
    shape = jax.eval_shape(jax.random.key_data, wanted) if _is_key(wanted) else jax.eval_shape(lambda x: x, wanted)
    if 0 in shape.shape or (name not in leaves and name in _SINCE_0_2):
        return np.zeros(shape.shape, shape.dtype)
    if name not in leaves:
        raise RunFolderError(f"{source} lacks '{name}' of this run")
    found = leaves[name]
    if found.shape != shape.shape:
        raise RunFolderError(f"{source} holds '{name}' with shape {found.shape}; this run needs {shape.shape}")
    if found.dtype != shape.dtype:
        raise RunFolderError(f"{source} holds '{name}' as {found.dtype}; this run needs {shape.dtype}")
    return jax.random.wrap_key_data(found, impl=_key_impl(wanted)) if _is_key(wanted) else found


def _leaf_name(path) -> str:
    # A bare array is a tree whose only leaf has an empty path.
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(key) -> Any:
    # `key_impl` refuses a ShapeDtypeStruct, but not the tracer of one.
    found = []
    jax.eval_shape(lambda traced: found.append(jax.random.key_impl(traced)), key)
    return found[0]
