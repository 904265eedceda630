"""Functions of the core as single compiled programs: op by op, each operation of a test compiles on its own."""

import jax

from marl_kl.core import cross_fitting, policies, trust_region

init_actors = jax.jit(policies.init_actors, static_argnums=(1, 2))
propose = jax.jit(trust_region.propose, static_argnums=(0, 1))
line_search = jax.jit(trust_region.line_search, static_argnums=(0, 1))
cross_fit = jax.jit(cross_fitting.cross_fit, static_argnums=(0, 1))
held_out_trial = jax.jit(cross_fitting.held_out_trial, static_argnums=0)
