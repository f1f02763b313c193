"""What processes say to each other in a step: where it is not logged, what they learn from and nothing else."""

import json

import pytest
from support.counted_run import LAST
from support.two import FSDP, run_in_two

GRADIENTS = {"allreduce": 1}
EVERY = 5
CASES = {
    "DDP, in two parts": ("prior", {"accumulate": 2}, {}, GRADIENTS),
    "FSDP": ("prior", {}, FSDP, {"allgather_base": 5, "reduce_scatter_base": 3}),  # weights, gradients
    "importance of times": ("prior", {"loss": {"times": "importance"}}, {}, GRADIENTS | {"allgather": 1}),  # losses
    # Gradients; how often codes are used, the sums of their latents, and latents for dead codes.
    "moving averages": ("tokenizer", {}, {}, {"allreduce": 1 + 3}),
    # Gradients; shares of codes in the entropy; two gradients of the last layer, which weigh the discriminator.
    "bits, against a discriminator": ("tokenizer", {"quantizer": "lfq", "adversarial": True}, {}, {"allreduce": 2 + 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_steps_that_are_not_logged_exchange_what_is_learned_from_alone(tmp_path, case):
    kind, settings, environment, expected = CASES[case]
    settings = {"log_steps": EVERY, "num_steps": 4000 if kind == "prior" else 40, **settings}
    done = run_in_two("support.counted_run", kind, tmp_path, json.dumps(settings), **environment)
    assert done.returncode == 0, done.stderr.decode()
    mine, theirs = (json.loads((tmp_path / f"counts-{rank}.json").read_text()) for rank in (0, 1))
    assert mine == theirs
    assert len(mine) == LAST
    for step in range(2 * EVERY + 1, LAST):  # the first are also those in which codes are placed and buffers laid out
        assert mine[str(step)] == expected
    assert mine[str(LAST)]["broadcast"] > 0  # it is seen where they say more
