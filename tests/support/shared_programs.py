"""One compilation for all runs of a process that differ only in their numbers and in their schedule on the host."""

import jax
import pytest

from marl_kl.config import SCHEDULE
from marl_kl.training import programs
from marl_kl.training.programs import Programs

_FIRST = {}
_MADE = ("_traced_init", "shapes", "_init", "_chunk", "_evaluate")


@pytest.fixture(scope="module", autouse=True)
def programs_are_shared():
    """In a module that imports this, programs of the same environment, algorithm, static fields and number of runs are
    compiled once, unless a test replaces what they are made of.

    A resumed run then continues with the very program that it began with. That it compiles the same one again is tested
    where runs are resumed in another process.
    """
    compile_programs, refuse_large_states = Programs.compile, Programs.refuse_large_states

    def is_made(self):
        first = _FIRST.get(_key(self))
        vars(self).update({name: value for name, value in vars(first or self).items() if name in _MADE})
        return first is not None

    def shared(self):
        if not is_made(self):
            compile_programs(self)
            _FIRST[_key(self)] = self

    def refuse(self, *texts):
        is_made(self)  # whose shapes are known
        refuse_large_states(self, *texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "compile", shared)
        patch.setattr(Programs, "refuse_large_states", refuse)
        yield


def _key(of):
    """What the compiled programs depend on; environments are the same if their functions are."""
    default = type(of._config)()
    free = [name for name in SCHEDULE if name != "chunk_updates" and hasattr(default, name)]
    schedule = {name: getattr(default, name) for name in free}
    config = of._config.replace(**default.traced_fields, **schedule)
    made_by = (programs.make_train, Programs._chunk_program, programs.evaluation.evaluate_seeds)
    env = (of._env.spec, of._env.reset, of._env.step)
    return env, of._algorithm, config, of.num_runs, made_by, jax.config.jax_enable_x64
