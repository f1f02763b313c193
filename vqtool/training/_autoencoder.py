"""A tokenizer in training: its networks with a quantizer, and a discriminator if there is one."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqtool.errors import VqtoolError
from vqtool.options import Checked, option
from vqtool.tokenizers import NetworkConfig, Tokenizer, quantizers
from vqtool.tokenizers.quantizers import Quantized, Quantizer
from vqtool.tokenizers.vqvae import channels_last
from vqtool.training.discriminator import Discriminator, DiscriminatorConfig
from vqtool.training.reconstruction import (
    adaptive_weight,
    edges,
    hinge,
    last_gradients,
    last_layer,
    reconstruction,
    weigh,
)

# Of the discriminator's own loss. Adam does not see it; but gradients are clipped by the norm of all together, and the
# discriminator's are the largest by far: with 1 all others are clipped to next to nothing.
DISCRIMINATOR_WEIGHT = 0.05

Metrics = dict[str, Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]  # images and rebuilt ones (B, 3, h, w) -> ()


@dataclass(frozen=True)
class TokenizerLoss(Checked):
    """What is minimised beside the terms of the quantizer."""

    loss: str = option(
        "l1",
        "Distance of pixels. l1: sharper edges. l2: higher PSNR.",
        choices="training/reconstruction.py:RECONSTRUCTIONS",
        advanced=True,
    )
    edges: float = option(0.5, "Weight of the same of neighbours' differences.", minimum=0, advanced=True)
    perceptual: str | None = option(
        None,
        "Also as a network sees it: efficientnet-lite0, or a file of ST-LPIPS weights.",
        shown="not",
        advanced=True,
    )
    perceptual_weight: float = option(1.0, "Its weight.", minimum=0, advanced=True)
    perceptual_share: float = option(
        1.0, "Share of each batch that it sees: less is faster.", above=0, maximum=1, advanced=True
    )
    adversarial: float | None = option(
        None,
        "Against a discriminator of patches (VQGAN), with this times the adaptive weight; published: 0.8.",
        shown="not",
        minimum=0,
        advanced=True,
    )
    adversarial_start: int | None = option(
        None, "First step with the discriminator.", shown="half-way", minimum=0, advanced=True
    )
    adversarial_warmup: int = option(
        0, "Steps from there in which it learns, and nothing learns from it.", minimum=0, advanced=True
    )
    adversarial_max: float = option(1e4, "Largest adaptive weight.", minimum=0, advanced=True)
    quantize_from: float = 0.05  # share of the run before which latents pass unquantised: codes then start on data
    restart_until: float = 0.8  # share of the run in which dead codes are restarted


@dataclass(frozen=True)
class Phase:
    """What is done in a step."""

    quantize: bool = True
    restart: bool = True
    adversarial: bool = True  # whether the discriminator learns
    fool: bool = True  # whether the tokenizer learns from it


class Part(NamedTuple):
    """Which part of a step's images of this process is worked through."""

    number: int = 0
    of: int = 1
    weight: Tensor | None = None  # the adaptive weight of the whole step, if there are several parts


class Autoencoder(nn.Module):
    """What is trained."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        quantizer: Quantizer | None,
        discriminator: DiscriminatorConfig | None = None,
        *,
        design: dict[str, Any],
    ) -> None:
        """A tokenizer to train.

        Args:
            tokenizer: whose networks are trained; its encoder too, unless its parameters need no gradient.
            quantizer: takes the place of the tokenizer's codebook; None keeps that one as it is.
            discriminator: None is none.
            design: what all this was made from; a resume needs the same.
        """
        super().__init__()
        self.tokenizer = tokenizer
        if quantizer is not None:
            del tokenizer.codebook  # the quantizer's takes its place: see `finished`
        self.quantizer = quantizer
        self.discriminator = None if discriminator is None else channels_last(Discriminator(discriminator))
        self.design = design
        self.learns_encoder = any(parameter.requires_grad for parameter in tokenizer.encoder.parameters())
        self._seen: list[tuple[Tensor, Tensor]] = []  # latents (n, D) and tokens (n,) of the parts of a step so far

    def forward(
        self,
        images: Tensor,
        picks: Tensor,
        *,
        loss: TokenizerLoss,
        phase: Phase,
        perceptual: Distance | None,
        part: Part = Part(),  # noqa: B008 - it never changes
    ) -> tuple[Tensor, Metrics]:
        """The loss of a batch, or of a part of it: the mean over the parts is that of the batch.

        Args:
            images: (B, 3, h, w) in [-1, 1].
            picks: (K,) noise for the quantizer.
            loss: what is minimised.
            phase: of the run.
            perceptual: a distance beside those of pixels and edges.
            part: of the batch; of several, `survey` has seen all before, and what learns without gradients learns with
                the last.

        Returns:
            () loss, and metrics by name.
        """
        latents = self._latents(images)
        with torch.autocast(images.device.type, enabled=False):  # the nearest code is not found in bfloat16
            quantized = self._quantize(latents, picks, phase, part)
        rebuilt = self.tokenizer.decode_codes(quantized.codes).float()
        total, metrics = self._judge(images, rebuilt, loss, phase, perceptual, part)
        if self.quantizer is not None:
            for name, value in quantized.losses.items():
                total = total + self.quantizer.weights[name] * value
        metrics |= quantized.losses
        metrics |= _measure(images, rebuilt, quantized.tokens, len(picks))
        return total + self._idle(phase), {name: value.detach() for name, value in metrics.items()}

    def survey(
        self, parts: Sequence[Tensor], picks: Tensor, *, loss: TokenizerLoss, phase: Phase, perceptual: Distance | None
    ) -> Tensor | None:
        """See all parts of a batch before the first is worked through, where what they learn from depends on all.

        Codes are placed on latents of all, and dead ones restarted; the adaptive weight is that of all. Encoder, and
        for the weight decoder and discriminator, are passed once more.

        Args:
            parts: (b, 3, h, w) each.
            picks: as those of `forward`, and so is the rest.

        Returns:
            () the adaptive weight, if there is a discriminator that takes part.
        """
        device = parts[0].device.type
        if self.quantizer is not None and phase.quantize and self.quantizer.prepares(restart=phase.restart):
            with torch.no_grad():
                flat = torch.cat([self._latents(images).flatten(0, 2) for images in parts])
                with torch.autocast(device, enabled=False):
                    self.quantizer.prepare(flat, picks, restart=phase.restart)
        if self.discriminator is None or not phase.adversarial:
            return None
        sums: list[Tensor] = []
        for number, images in enumerate(parts):
            latents = self._latents(images)
            with torch.autocast(device, enabled=False):
                codes = self._look_up(latents, phase).codes
            rebuilt = self.tokenizer.decode_codes(codes).float()
            picture = rebuilt.detach().requires_grad_()
            distance, _ = _distances(images, picture, loss, perceptual, Part(number, len(parts)))
            (pull,) = torch.autograd.grad(distance, picture)
            (push,) = torch.autograd.grad(-self.discriminator(picture).float().mean(), picture)
            found = last_gradients(rebuilt, last_layer(self.tokenizer.decoder), pull, push)
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        return weigh([each / len(parts) for each in sums], largest=loss.adversarial_max)

    def _latents(self, images: Tensor) -> Tensor:
        """(B, H, W, D) float32."""
        with torch.set_grad_enabled(self.learns_encoder and torch.is_grad_enabled()):
            return self.tokenizer.latents(images).float()

    def _quantize(self, latents: Tensor, picks: Tensor, phase: Phase, part: Part) -> Quantized:
        """Codes of latents; the quantizer learns of those of all parts together, with the last."""
        if self.quantizer is None or not phase.quantize:
            return self._look_up(latents, phase)
        if part.of == 1:
            whole: Quantized = self.quantizer(latents, picks, restart=phase.restart)
            return whole
        found = self._look_up(latents, phase)
        if part.number == 0:
            self._seen.clear()
        self._seen.append((latents.detach().flatten(0, 2), found.tokens.flatten()))
        if part.number + 1 == part.of and self.training:
            with torch.no_grad():
                flat, tokens = (torch.cat(each) for each in zip(*self._seen, strict=True))
                self.quantizer.follow(flat, tokens, picks, restart=phase.restart)
        return found

    def _look_up(self, latents: Tensor, phase: Phase) -> Quantized:
        """Codes of latents; nothing is learned but by gradients."""
        if self.quantizer is None:
            tokens = self.tokenizer.look_up(latents.flatten(0, 2)).view(latents.shape[:-1])
            return Quantized(self.tokenizer.codebook[tokens], tokens, {})
        if phase.quantize:
            return self.quantizer.quantise(latents)
        return Quantized(latents, torch.zeros(latents.shape[:-1], dtype=torch.int64, device=latents.device), {})

    def _judge(
        self,
        images: Tensor,
        rebuilt: Tensor,
        loss: TokenizerLoss,
        phase: Phase,
        perceptual: Distance | None,
        part: Part,
    ) -> tuple[Tensor, Metrics]:
        """Distances and, if there is one, what the discriminator thinks; it learns at the same time."""
        if self.discriminator is None or not phase.adversarial:
            return _distances(images, rebuilt, loss, perceptual, part)
        # Both gradients by the picture are found first: their weight depends on them, and neither the perceptual
        # network nor the discriminator has to be passed a second time.
        picture = rebuilt.detach().requires_grad_()
        with torch.enable_grad():
            distance, metrics = _distances(images, picture, loss, perceptual, part)
            (pull,) = torch.autograd.grad(distance, picture)
            fake = self.discriminator(picture).float()
            fooled = -fake.mean()
            (push,) = torch.autograd.grad(fooled, picture, retain_graph=True)
        weight = part.weight
        if weight is None:
            layer = last_layer(self.tokenizer.decoder)
            weight = adaptive_weight(rebuilt, layer, pull, push, largest=loss.adversarial_max)
        weight_of_all = (loss.adversarial or 0.0) * weight * phase.fool
        gradient = pull + weight_of_all * push
        carrier = (rebuilt * gradient).sum()  # its gradient by `rebuilt` is `gradient`
        real = self.discriminator(images).float()
        judged = hinge(real, fake)
        metrics |= {"adversarial": fooled, "adversarial_weight": weight, "discriminator": judged}
        metrics |= {"real_score": real.mean(), "fake_score": fake.mean()}
        value = distance + weight_of_all * fooled
        return value.detach() + (carrier - carrier.detach()) + DISCRIMINATOR_WEIGHT * judged, metrics

    def _idle(self, phase: Phase) -> Tensor | float:
        """0, with gradients of 0 for what this step does not use: several processes wait for them."""
        idle: list[Tensor] = []
        if self.quantizer is not None and not phase.quantize:
            idle += self.quantizer.parameters()
        if self.discriminator is not None and not phase.adversarial:
            idle += self.discriminator.parameters()
        return 0.0 * sum((parameter.sum() for parameter in idle), start=torch.zeros(())) if idle else 0.0

    @property
    def blocks(self) -> nn.ModuleList:
        """What learns in chains of the networks, in whole pieces: what `checkpoint` computes again for the gradient."""
        chains = [module for module in self.tokenizer.modules() if isinstance(module, nn.Sequential | nn.ModuleList)]
        links = [link for chain in chains for link in chain if any(link.children())]
        inner = {module for link in links for module in link.modules() if module is not link}
        learn = [link for link in links if any(parameter.requires_grad for parameter in link.parameters())]
        return nn.ModuleList(link for link in dict.fromkeys(learn) if link not in inner)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile encoder and decoder, in place: losses with gradients of their own cannot be."""
        self.tokenizer.encoder.compile(*args, **kwargs)
        self.tokenizer.decoder.compile(*args, **kwargs)

    def finished(self) -> Tokenizer:
        """The tokenizer with the codebook as it is now."""
        mine = self.tokenizer
        result = Tokenizer(mine.config, lookup=mine.lookup, num_full_codes=mine.num_full_codes)
        tensors = mine.state_dict()
        if self.quantizer is not None:
            tensors["codebook"] = self.quantizer.effective_codebook().detach()
        result.to(next(iter(tensors.values())).device).load_state_dict(tensors)
        return result.eval()


def build_model(
    config: NetworkConfig,
    seed: int,
    *,
    quantizer: str = quantizers.DEFAULT,
    options: dict[str, Any] | None = None,
    discriminator: DiscriminatorConfig | None = None,
    start: Tokenizer | None = None,
) -> Autoencoder:
    """A new model with weights drawn from the seed, or those of a tokenizer.

    Args:
        config: of the network, with the shape of the quantizer's codebook.
        seed: of the weights.
        quantizer: one of quantizers.NAMES.
        options: of the quantizer.
        discriminator: None is none.
        start: of this config, whose networks and codes training begins with.

    Raises:
        VqtoolError: its codes cannot learn, or not with this quantizer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = Tokenizer(config, lookup=quantizers.find(quantizer).Quantizer.lookup)
        built = quantizers.build(quantizer, config.codebook_size, config.code_dim, **options or {})
        design = {
            "network": asdict(config),
            "quantizer": quantizer,
            **asdict(built.options),
            **({} if discriminator is None else asdict(discriminator)),
        }
        if start is not None:
            check_codes_learn(start)
            if start.lookup != tokenizer.lookup:
                raise VqtoolError(
                    f"{start.location} looks codes up by {start.lookup!r}, {quantizer} by {tokenizer.lookup!r}: "
                    "take another quantizer"
                )
            tokenizer.load_state_dict(start.state_dict())
            built.begin(start.codebook)
        return Autoencoder(tokenizer, built, discriminator, design=design)


def check_codes_learn(tokenizer: Tokenizer) -> None:
    """Raise VqtoolError if a tokenizer's codes are not what latents are compared with."""
    obstacle = "a code map" if tokenizer.num_full_codes is not None else None
    if tokenizer.lookup in ("projection", "dot"):
        obstacle = f"a lookup by {tokenizer.lookup}"
    if obstacle is not None:
        raise VqtoolError(
            f"{tokenizer.location or 'the tokenizer'} has {obstacle}: its codes cannot learn, only its decoder can: "
            "vqtool codebook finetune --keep-codes"
        )


def unwrapped(model: nn.Module) -> Autoencoder:
    """What is trained, out of what may be wrapped for several processes."""
    found = getattr(model, "module", model)
    if not isinstance(found, Autoencoder):
        raise ValueError(f"model is a {type(found).__name__}, not an Autoencoder")
    return found


def _distances(
    images: Tensor, rebuilt: Tensor, loss: TokenizerLoss, perceptual: Distance | None, part: Part
) -> tuple[Tensor, Metrics]:
    metrics = {"reconstruction": reconstruction(images, rebuilt, loss.loss), "edges": edges(images, rebuilt)}
    total = metrics["reconstruction"] + loss.edges * metrics["edges"]
    if perceptual is not None:
        num = max(1, round(loss.perceptual_share * len(images) * part.of))  # the first of all parts
        seen = min(max(num - part.number * len(images), 0), len(images))
        metrics["perceptual"] = images.new_zeros(())
        if seen:
            metrics["perceptual"] = perceptual(images[:seen], rebuilt[:seen]) * (seen * part.of / num)
        total = total + loss.perceptual_weight * metrics["perceptual"]
    return total, metrics


@torch.no_grad()
def _measure(images: Tensor, rebuilt: Tensor, tokens: Tensor, codebook_size: int) -> Metrics:
    """How good the pictures are, and how often each code is used here."""
    error = (images - rebuilt.clamp(-1, 1)).square().mean((1, 2, 3)).clamp(min=1e-10)
    counts = images.new_zeros(codebook_size)  # no bincount: a GPU would be waited for
    counts.index_add_(0, tokens.flatten(), images.new_ones(tokens.numel()))
    return {"psnr": (10 * torch.log10(4.0 / error)).mean(), "counts": counts}
