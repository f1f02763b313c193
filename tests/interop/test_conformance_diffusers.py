"""Our mathematics and files against diffusers itself: scheduler, network, pipeline, and its loaders."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vqtool import denoisers, interop
from vqtool.diffusion import guidance, kernels
from vqtool.diffusion.posterior import average_posterior
from vqtool.diffusion.schedules import FIRST_KEEP, FIRST_MASK, LAST_KEEP, PAPER_LAST_MASK, RELEASE_LAST_MASK
from vqtool.interop import Options
from vqtool.interop import diffusers as importer

# diffusers announces with warnings which of its parts later versions drop.
pytestmark = [pytest.mark.filterwarnings("ignore")]
GOLDEN = Path(__file__).parents[1] / "golden" / "df-pipeline"
FLOOR = -30.0  # log-probabilities below it are not compared: floors differ
LAST_MASK = {"release": RELEASE_LAST_MASK, "paper": PAPER_LAST_MASK}


@pytest.fixture(scope="module")
def peer():
    """The package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("diffusers")
        pytest.importorskip("diffusers.schedulers.scheduling_vq_diffusion")
    return package


@pytest.fixture(scope="module")
def pipeline(peer):
    """The class of the pipeline, which needs transformers."""
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion")
    return module


def build_scheduler(peer, schedule, codebook_size, num_steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer.VQDiffusionScheduler(
            num_vec_classes=codebook_size + 1,
            num_train_timesteps=num_steps,
            alpha_cum_start=FIRST_KEEP,
            alpha_cum_end=LAST_KEEP,
            gamma_cum_start=FIRST_MASK,
            gamma_cum_end=LAST_MASK[schedule],
        )


def random_log_x0(codebook_size, generator):
    return (3 * torch.randn(2, 3, 5, codebook_size, generator=generator)).log_softmax(-1)


def theirs(log_p):
    """(B, H, W, K) as the peer's (B, K, L)."""
    return log_p.flatten(1, 2).transpose(1, 2)


def ours(log_p, grid_size):
    """The peer's (B, K, L) as (B, H, W, K)."""
    return log_p.transpose(1, 2).unflatten(1, grid_size)


@pytest.mark.parametrize("schedule", LAST_MASK)
@pytest.mark.parametrize(("codebook_size", "num_steps"), [(2, 2), (3, 7), (17, 10), (40, 100), (300, 25), (1024, 50)])
def test_posteriors_are_those_of_the_scheduler(peer, schedule, codebook_size, num_steps):
    kernel = kernels.build("mask-replace", schedule=schedule, codebook_size=codebook_size, num_steps=num_steps)
    scheduler = build_scheduler(peer, schedule, codebook_size, num_steps)
    generator = torch.Generator().manual_seed(num_steps)
    for t in sorted({2, (num_steps + 2) // 2, num_steps - 1, num_steps} - {0, 1}):
        log_x0 = random_log_x0(codebook_size, generator)
        times = torch.full((2,), t)
        x_t = kernel.sample(log_x0.argmax(-1), times, torch.rand(2, 3, 5, dtype=torch.float64, generator=generator))
        expected = ours(scheduler.q_posterior(theirs(log_x0), x_t.flatten(1), t - 1), (3, 5))
        found = average_posterior(log_x0, x_t, times, times - 1, kernel)
        seen = expected > FLOOR
        torch.testing.assert_close(found.exp(), expected.exp().to(found.dtype), rtol=0, atol=5e-6)
        torch.testing.assert_close(found[seen], expected[seen].to(found.dtype), rtol=0, atol=5e-5)
        assert bool((found[~seen] < FLOOR + 1).all())


@pytest.mark.parametrize("schedule", LAST_MASK)
def test_schedules_are_those_of_the_scheduler(peer, schedule):
    kernel = kernels.build("mask-replace", schedule=schedule, codebook_size=7, num_steps=100)
    scheduler = build_scheduler(peer, schedule, 7, 100)
    for table, log_rates in (
        (kernel.alpha_bar, scheduler.log_cumprod_at),
        (kernel.gamma_bar, scheduler.log_cumprod_ct),
        (kernel.beta_bar, scheduler.log_cumprod_bt),
    ):
        torch.testing.assert_close(table[1:], log_rates[:-1].double().exp(), rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_the_text_network_is_diffusers_transformer_with_its_weights(peer, num_heads):
    config = {
        "codebook_size": 23, "grid_size": (4, 4), "num_steps": 9, "num_layers": 3, "width": 32, "num_heads": num_heads,
        "text_width": 12, "text_length": 6, "learned_null": False,
    }  # fmt: skip
    denoiser = denoisers.build("vq-diffusion", config).eval()
    settings = importer._transformer_settings(denoiser.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = peer.Transformer2DModel.from_config(settings).eval()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            names = importer.names_of(denoiser.config)[name]
            tensors |= dict(zip(names, parameter.chunk(len(names)), strict=True))
        network.load_state_dict(tensors)
        x_t = torch.randint(0, 24, (5, 4, 4), generator=generator)
        text = torch.randn(5, 6, 12, generator=generator)
        for t in (1, 5, 9):
            expected = network(x_t.flatten(1), encoder_hidden_states=text, timestep=torch.tensor(t - 1)).sample
            found = denoiser(x_t, torch.full((5,), t), text).log_softmax(-1)
            torch.testing.assert_close(found, ours(expected, (4, 4)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("truncation", [0.3, 0.86, 0.999])
def test_guidance_and_truncation_are_those_of_the_pipeline(pipeline, truncation):
    generator = torch.Generator().manual_seed(0)
    log_u, log_c = random_log_x0(50, generator), random_log_x0(50, generator)
    peers_u, peers_c = theirs(log_u), theirs(log_c)
    expected = peers_u + 4.0 * (peers_c - peers_u)  # VQDiffusionPipeline.__call__
    expected -= torch.logsumexp(expected, dim=1, keepdim=True)
    guided = guidance.guide(log_c, log_u, 4.0)
    torch.testing.assert_close(guided, ours(expected, (3, 5)), rtol=0, atol=2e-5)
    cut = ours(pipeline.VQDiffusionPipeline.truncate(None, theirs(guided), truncation), (3, 5))
    found = guidance.truncate(guided, truncation)
    assert torch.equal(found > -torch.inf, cut > -torch.inf)
    torch.testing.assert_close(found, cut.log_softmax(-1), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What was imported from the golden pipeline, and the folder that it was exported to."""
    imported = interop.load(interop.read_source(GOLDEN), Options())
    folder = tmp_path_factory.mktemp("exported")
    importer.export(imported.prior, imported.tokenizer, folder)
    return imported, folder


def test_the_parts_of_an_exported_folder_load_with_diffusers_and_compute_the_same(peer, pipeline, exported):
    import transformers

    imported, folder = exported
    prior, texts = imported.prior, ["a red cat", "the dog on", ""]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        words = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
        ids = words(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        assert torch.equal(ids, prior.conditioner.encode(texts))

        states = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")(ids)[0]
        features = states / states.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(prior.text_encoder(ids), features, rtol=0, atol=1e-5)

        transformer = peer.Transformer2DModel.from_pretrained(folder / "transformer")
        x_t = torch.randint(0, 41, (3, 4, 4), generator=torch.Generator().manual_seed(0))
        log_p = transformer(x_t.flatten(1), encoder_hidden_states=features, timestep=torch.tensor(6)).sample
        found = prior.log_x0(x_t, torch.full((3,), 7), features)
        torch.testing.assert_close(found, ours(log_p, (4, 4)), rtol=0, atol=1e-5)

        scheduler = peer.VQDiffusionScheduler.from_pretrained(folder / "scheduler")
        assert scheduler.num_embed == 41
        assert len(scheduler.timesteps) == 12
        expected = scheduler.log_cumprod_at[:-1].double().exp()
        torch.testing.assert_close(prior.kernel.alpha_bar[1:], expected, rtol=2e-6, atol=0)

        vqvae = peer.VQModel.from_pretrained(folder / "vqvae")
        codes = vqvae.quantize.get_codebook_entry(x_t.clamp(max=39).flatten(), (3, 4, 4, 16))
        images = vqvae.decode(codes, force_not_quantize=True).sample
        torch.testing.assert_close(imported.tokenizer.decode(x_t.clamp(max=39)), images, rtol=0, atol=1e-5)

        null_text = pipeline.LearnedClassifierFreeSamplingEmbeddings.from_pretrained(folder / importer.NULL_TEXT)
        assert torch.equal(null_text.embeddings, prior.denoiser.null_text)


def test_the_pipeline_of_an_exported_folder_draws_what_the_golden_one_drew(peer, pipeline, exported, monkeypatch):
    import transformers

    folder = exported[1]
    with safe_open(GOLDEN / "io.safetensors", "pt") as file:
        uniforms = [*file.get_tensor("uniforms"), file.get_tensor("uniforms_last")]
        expected = file.get_tensor("images")
    null_text = pipeline.LearnedClassifierFreeSamplingEmbeddings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = pipeline.VQDiffusionPipeline(
            vqvae=peer.VQModel.from_pretrained(folder / "vqvae"),
            text_encoder=transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
            tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            transformer=peer.Transformer2DModel.from_pretrained(folder / "transformer"),
            scheduler=peer.VQDiffusionScheduler.from_pretrained(folder / "scheduler"),
            learned_classifier_free_sampling_embeddings=null_text.from_pretrained(folder / importer.NULL_TEXT),
        )
        made.set_progress_bar_config(disable=True)
        monkeypatch.setattr(torch, "rand", lambda *_, **__: uniforms.pop(0))
        prompts, settings = ["a red cat", "the dog on"], {"guidance_scale": 3.0, "truncation_rate": 0.86}
        images = made(prompts, num_inference_steps=12, output_type="np", **settings).images
    torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-3)
