"""R1 and L2 for programs nobody thought of: drawn ones train alike in every mode and on any number of replicas."""

import pytest

from tests import fuzz


def _check(seed, variants=None):
    source = fuzz.write(seed)
    program = {"__name__": f"program_{seed}"}
    try:
        exec(compile(source, f"<program {seed}>", "exec"), program)
        fuzz.compare(program["make"], program["batches"], program["VARIANTS"][:variants])
    except Exception:
        print(source)  # pytest shows it with the failure
        raise


@pytest.mark.parametrize("seed", range(20))
def test_drawn_programs_train_alike_in_every_way(seed):
    _check(seed, variants=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_more_drawn_programs(seed):
    _check(seed)


def test_a_seed_draws_the_same_program_in_every_process():
    assert fuzz.write(3) == fuzz.write(3)
    assert len({fuzz.write(seed) for seed in range(200)}) == 200
