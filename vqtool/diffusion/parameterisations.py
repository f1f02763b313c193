"""What a denoiser's logits mean: from them to log p(x_0 | x_t), and to what the other cells say alone."""

import torch
from torch import Tensor

from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.posterior import add_at_tokens, log_evidence

PARAMETERISATIONS = ("evidence", "direct", "residual")
MAX_EVIDENCE = 30.0  # nats: practically certain; keeps log-probabilities finite


def log_probabilities(
    logits: Tensor, x_t: Tensor, t: Tensor, kernel: Kernel, parameterisation: str, *, raw: bool = False
) -> Tensor:
    """Log p(x_0 | x_t) from a denoiser's logits.

    Parameterisations:

    - "evidence": the logits predict a cell from the other cells. The evidence of its own unmasked token x_t is added by
      Bayes' rule, in closed form: log q(x_t | x_0 = x_t) - log q(x_t | x_0 = k) for any other k, on the logit of x_t.
      The network need not learn to copy tokens, nor how reliable they are at each t.
    - "direct": the logits are used as they are (networks of other projects).
    - "residual": the logit of an unmasked x_t is raised by 1, as in VQ-DDM's x_0 = mu(x_t, t) + x_t.

    Args:
        logits: (B, H, W, K).
        x_t: (B, H, W) int64 tokens or mask_id.
        t: (B,) int64 in [0, T].
        kernel: the forward process that made x_t.
        parameterisation: one of PARAMETERISATIONS.
        raw: return what is before the softmax.

    Returns:
        (B, H, W, K) float32, nats; exp sums to 1 over the last axis, unless `raw` is on.
    """
    logits = logits.float()
    if parameterisation != "direct":
        is_residual = parameterisation == "residual"
        raised = torch.ones_like(t) if is_residual else log_evidence(t, kernel).clamp(max=MAX_EVIDENCE)
        logits = add_at_tokens(logits, x_t, raised, kernel.mask_id)
    return logits if raw else logits.log_softmax(-1)


def leave_one_out(log_x0: Tensor, x_t: Tensor, t: Tensor, kernel: Kernel, temperature: float = 1.0) -> Tensor:
    """Log p(x_0 | the other cells): p(x_0 | x_t) without what an unmasked cell's own token says of it, by Bayes' rule.

    For "evidence" these are the logits, normalised. Evidence of more than MAX_EVIDENCE counts as that.

    Args:
        log_x0: (B, ..., K) log p(x_0 | x_t), nats.
        x_t: (B, ...) int64 tokens or mask_id.
        t: (B,) int64 in [0, T].
        kernel: the forward process that made x_t.
        temperature: that has been applied to log_x0, and so to the evidence in it.

    Returns:
        (B, ..., K) log-probabilities, nats; exp sums to 1 over the last axis.

    Source: arXiv:2605.22765, equation 13, for the uniform kernel.
    """
    evidence = log_evidence(t, kernel).clamp(max=MAX_EVIDENCE)
    return add_at_tokens(log_x0, x_t, -evidence / temperature, kernel.mask_id).log_softmax(-1)
