"""XLA's options, of which every version of jaxlib knows others."""

from __future__ import annotations

import functools

import jax

CompilerOptions = tuple[tuple[str, bool | int], ...]
"""(name, value) pairs."""


def known(options: CompilerOptions) -> dict[str, bool | int]:
    """Those that this XLA has: `jax.jit(..., compiler_options=...)` fails with any other."""
    return {name: value for name, value in options if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: bool | int) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except Exception:
        return False
    return True
