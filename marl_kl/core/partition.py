"""One run on several devices: its environments, and the rows of its batches, are spread over the axis `ENV_AXIS` of a mesh.

XLA's partitioner divides the whole program, and sums over the batch are sums over the devices. It needs to be told only
where arrays begin and where rows change their places; elsewhere, and wherever there is no such axis, nothing happens.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec

ENV_AXIS = "env"


def spread(tree: Any) -> Any:
    """Arrays whose leading axis, environments or rows, is divided over the devices."""
    return _constrained(tree, PartitionSpec(ENV_AXIS))


def gathered(tree: Any) -> Any:
    """Arrays that every device has whole, so that it can take rows from anywhere in them."""
    return _constrained(tree, PartitionSpec())


def _constrained(tree: Any, spec: PartitionSpec) -> Any:
    if ENV_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return tree
    return jax.lax.with_sharding_constraint(tree, spec)
