"""Networks leave as folders that diffusers samples from, with the same images, and come back to be trained further."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline import checkpoint
from pipeline.__main__ import main
from pipeline.config.load import config_from
from pipeline.config.paths import training_shards
from pipeline.config.schema_diffusion import DiffusionConfig, SamplerConfig
from pipeline.config.schema_model import BottleneckAutoencoderConfig, DiTConfig, KLAutoencoderConfig, UNetConfig
from pipeline.data.pictures import to_uint8
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards, read_manifest
from pipeline.diffusers_io import folder as folders
from pipeline.diffusers_io.folder import SETTINGS, Latents, Network, read, write_diffusers, write_safetensors
from pipeline.diffusers_io.schedulers import disagreements, process_of, scheduling
from pipeline.diffusion.build import build_process
from pipeline.diffusion.build_sampler import build_generator, no_noise
from pipeline.export import export
from pipeline.export import main as export_main
from pipeline.import_diffusers import import_diffusers
from pipeline.model_card import write_card
from pipeline.models.build import build_network
from pipeline.models.pretrained import load_autoencoder
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import write_json
from pipeline.runtime.random import Stream, normal
from pipeline.runtime.run_dir import RunDir, existing_run
from pipeline.sample import sample

diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE, CLASSES = (3, 8, 8), 4
UNET = UNetConfig(kind="unet", width=16, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, groups=8)
DIT = DiTConfig(kind="dit", width=32, depth=2, heads=2, qk_norm=False)
DDPM = {"kind": "ddpm"}
CASES = {
    "edm euler": (UNET, {}, {"kind": "euler", "steps": 8, "guidance": {"scale": 2.0}}),
    "edm dpm++": (UNET, {"sigma_data": 0.6}, {"kind": "dpmpp_2m", "steps": 8, "sigmas": {"kind": "exponential"}}),
    "v continuous": (UNET, {"parametrisation": "v"}, {"kind": "euler", "steps": 8}),
    "eps ddim": (
        UNET.model_copy(update={"condition": "none"}),
        {"parametrisation": "eps", "levels": DDPM},
        {"kind": "ddim", "steps": 10, "sigmas": {"kind": "ddpm", "spacing": "leading"}, "clip": 1.0},
    ),
    "x0 ddim cosine": (
        UNET,
        {"parametrisation": "x0", "levels": {"kind": "ddpm", "schedule": "cosine", "timesteps": 300}},
        {
            "kind": "ddim",
            "steps": 10,
            "clip": 1,
            "sigmas": {"kind": "ddpm", "spacing": "leading"},
            "guidance": {"scale": 2},
        },
    ),
    "v euler karras": (UNET, {"parametrisation": "v", "levels": DDPM}, {"kind": "euler", "steps": 10}),
    "v heun karras": (UNET, {"parametrisation": "v", "levels": DDPM}, {"kind": "heun", "steps": 6}),
    "v dpm++ timesteps": (
        UNET,
        {"parametrisation": "v", "levels": DDPM},
        {"kind": "dpmpp_2m", "steps": 8, "sigmas": {"kind": "ddpm"}},
    ),
    "v euler exponential": (
        UNET,
        {"parametrisation": "v", "levels": DDPM},
        {"kind": "euler", "steps": 8, "sigmas": {"kind": "exponential"}},
    ),
    "x0 unipc timesteps": (
        UNET,
        {"parametrisation": "x0", "levels": DDPM},
        {"kind": "unipc", "steps": 8, "sigmas": {"kind": "ddpm"}},
    ),
    "v dpm++ sde": (
        UNET,
        {"parametrisation": "v", "levels": DDPM},
        {"kind": "dpmpp_2m_sde", "steps": 8, "sigmas": {"kind": "ddpm"}},
    ),
    "v ddpm learned variance guided": (
        UNET,
        {"parametrisation": "v", "levels": DDPM, "learned_variance": True},
        {
            "kind": "ddpm",
            "variance": "learned",
            "steps": 8,
            "clip": 1.0,
            "sigmas": {"kind": "ddpm", "spacing": "leading"},
            "guidance": {"scale": 3.0},
        },
    ),
    "v ddim eta": (
        UNET,
        {"parametrisation": "v", "levels": DDPM},
        {"kind": "ddim", "eta": 0.7, "steps": 8, "clip": 1.0, "sigmas": {"kind": "ddpm", "spacing": "leading"}},
    ),
    "flow transformer": (
        DIT,
        {"parametrisation": "flow", "levels": {"kind": "uniform_flow"}},
        {"kind": "euler", "steps": 8, "sigmas": {"kind": "flow", "shift": 2.0}, "guidance": {"scale": 3.0}},
    ),
}


def network_of(model, diffusion=None, sampler=None) -> tuple[torch.nn.Module, Network]:
    """A network with random weights, small enough that its samples stay near [-1, 1], built and at rest."""
    torch.manual_seed(0)
    outputs = 2 * SHAPE[0] if (diffusion or {}).get("learned_variance") else None
    module = build_network(model, shape=SHAPE, classes=CLASSES, outputs=outputs).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    rest = Network(
        model=model,
        shape=SHAPE,
        weights=module.state_dict(),
        classes=CLASSES,
        class_names=("a", "b", "c", "d"),
        outputs=outputs,
        diffusion=DiffusionConfig.model_validate(diffusion or {}),
        sampler=SamplerConfig.model_validate(sampler or {"kind": "euler", "steps": 4}),
    )
    return module, rest


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_an_exported_folder_gives_the_same_images_in_diffusers(case, tmp_path):
    model, diffusion, sampler = CASES[case]
    module, rest = network_of(model, diffusion, sampler)
    labelled = model.condition == "class"
    notes = write_diffusers(tmp_path / "out", rest)
    assert [note for note in notes if "use_clipped_model_output" not in note and "init_noise_sigma" not in note] == []
    labels = torch.tensor([0, 3, 1]) if labelled else None
    generator, way = torch.Generator().manual_seed(5), torch.Generator().manual_seed(9)
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(5))
    process = build_process(rest.diffusion)
    hidden = torch.full((3,), CLASSES) if labelled else None
    with torch.no_grad():
        generate = build_generator(rest.sampler, process, module, condition=labels, hidden=hidden)
        ours = generate(noise, lambda _: torch.randn(noise.shape, generator=way))
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if labelled:
        way.manual_seed(9)
        of_diffusers = pipe(class_labels=labels.tolist(), noise=noise, generator=way, output_type="pt").images
    else:  # diffusers' own pipeline, which draws the same noise from the same generator
        of_diffusers = pipe(
            batch_size=3, generator=generator, num_inference_steps=10, use_clipped_model_output=True, output_type="np"
        ).images
        ours, of_diffusers = (ours / 2 + 0.5).clamp(0, 1), torch.from_numpy(of_diffusers).permute(0, 3, 1, 2)
    assert ours.abs().max() > 0.1
    assert (ours - of_diffusers).abs().max() < 1e-4


@pytest.mark.parametrize("model", [UNET, DIT, KLAutoencoderConfig(kind="kl_autoencoder", width=8, groups=4)])
@pytest.mark.parametrize("known", [True, False], ids=["with-our-settings", "without"])
def test_a_folder_comes_back_as_the_same_network(model, known, tmp_path):
    """Also where another program wrote it, which leaves no settings of ours."""
    _, rest = network_of(model)
    write_diffusers(tmp_path / "out", rest)
    if not known:
        (tmp_path / "out" / SETTINGS).unlink()
    back = read(tmp_path / "out")
    assert (back.model, back.shape) == (model, SHAPE)
    assert back.diffusion == (rest.diffusion if known or model in (UNET, DIT) else None)  # the scheduler tells it
    assert back.weights.keys() == rest.weights.keys()
    assert all(torch.equal(back.weights[name], rest.weights[name]) for name in rest.weights)


def test_an_exported_autoencoder_is_one_of_diffusers(tmp_path):
    module, rest = network_of(KLAutoencoderConfig(kind="kl_autoencoder", width=8, groups=4))
    write_diffusers(tmp_path / "vae", rest)
    of_diffusers = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert (module.encode(images).mean - of_diffusers.encode(images).latent_dist.mean).abs().max() < 1e-5
        of_diffusers.save_pretrained(tmp_path / "resaved")
        loaded = load_autoencoder(tmp_path / "resaved")
        assert torch.equal(loaded.encode(images).mean, module.encode(images).mean)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_denoiser_of_latents_takes_its_autoencoder_along(tmp_path):
    """The pipeline decodes latents brought back to the autoencoder's own scale."""
    autoencoder, first = network_of(KLAutoencoderConfig(kind="kl_autoencoder", width=8, groups=4, latent_channels=3))
    module, rest = network_of(UNET)
    mean, std = (0.5, -1.0, 0.0), (2.0, 0.7, 1.3)
    write_diffusers(
        tmp_path / "out", rest.model_copy(update={"latents": Latents(autoencoder=first, mean=mean, std=std)})
    )
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    noise, labels = torch.randn(2, *SHAPE), torch.tensor([1, 2])
    with torch.no_grad():
        z = build_generator(rest.sampler, build_process(rest.diffusion), module, condition=labels)(noise, no_noise)
        ours = autoencoder.decode(z * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None])
        of_diffusers = pipe(class_labels=[1, 2], noise=noise, output_type="pt").images
    assert ours.shape == (2, 3, 32, 32) and (ours - of_diffusers).abs().max() < 1e-4
    assert isinstance(load_autoencoder(tmp_path / "out" / "vae").cfg, KLAutoencoderConfig)


def test_an_autoencoder_of_an_old_version_is_loaded(tmp_path):
    """Stable Diffusion's file has these names; diffusers renames them as it loads, and so do we."""
    _, rest = network_of(KLAutoencoderConfig(kind="kl_autoencoder", width=8, groups=4))
    write_diffusers(tmp_path / "vae", rest)
    path = tmp_path / "vae" / folders.DIFFUSERS_WEIGHTS
    old = {}
    for name, tensor in load_file(path).items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = tensor
    assert "decoder.mid_block.attentions.0.query.weight" in old
    save_file(old, path, {"format": "pt"})
    of_diffusers, images = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae"), torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = of_diffusers.encode(images).latent_dist.mean
        assert (load_autoencoder(tmp_path / "vae").encode(images).mean - expected).abs().max() < 1e-5


def test_a_bottleneck_autoencoder_is_loaded_by_its_folder(tmp_path):
    module, rest = network_of(BottleneckAutoencoderConfig(kind="bottleneck_autoencoder", width=8))
    write_safetensors(tmp_path / "out", rest)
    images = torch.randn(2, *SHAPE)
    assert torch.equal(load_autoencoder(tmp_path / "out").encode(images).mean, module.encode(images).mean)
    with pytest.raises(UserError, match="found no autoencoder"):
        load_autoencoder(tmp_path)


def test_any_network_leaves_and_comes_back_as_safetensors(tmp_path):
    model = DiTConfig(kind="dit", width=32, depth=2, heads=2, condition="attributes")
    torch.manual_seed(0)
    module = build_network(model, shape=SHAPE, attributes=6)
    rest = Network(model=model, shape=SHAPE, weights=module.state_dict(), attributes=6, diffusion=DiffusionConfig())
    write_safetensors(tmp_path / "out", rest)
    back = read(tmp_path / "out")
    assert (back.model, back.attributes, back.diffusion) == (model, 6, rest.diffusion)
    checkpoint.load_strictly(module, back.weights, what="the folder")
    with pytest.raises(UserError, match=r"condition: found attributes.*qk_norm: found True"):
        write_diffusers(tmp_path / "of_diffusers", rest)
    assert not (tmp_path / "of_diffusers").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps on bright squares."""
    root = tmp_path_factory.mktemp("trained")
    cfg = tiny.config(root, duration="3 steps")
    tiny.prepare(cfg)
    return cfg, tiny.run(cfg)


def test_a_run_is_exported_imported_and_trained_further(trained, tmp_path):
    cfg, run = trained
    folder, _ = export(cfg, run, to=tmp_path / "out")
    of_diffusers = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
    ours = build_network(cfg.model, shape=(1, 8, 8), classes=3).eval()
    weights, step = checkpoint.load_weights(run, which="ema", network="denoiser")
    ours.load_state_dict(weights)
    x, noise_cond, labels = torch.randn(3, 1, 8, 8), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0, 2, 3])
    with torch.no_grad():
        difference = ours(x, noise_cond, labels) - of_diffusers(x, noise_cond, class_labels=labels).sample
    assert step == 3 and difference.abs().max() < 1e-5

    again = cfg.model_copy(update={"name": "imported"})
    imported = import_diffusers(folder, again)
    for which in ("network", "ema"):
        loaded, step = checkpoint.load_weights(imported, which=which, network="denoiser")
        assert step == 0 and all(torch.equal(loaded[name], weights[name]) for name in weights)
    tiny.run(again)
    assert imported.steps()[-1] == 3
    with pytest.raises(UserError, match="has checkpoints"):
        import_diffusers(folder, again)


def test_what_only_training_needs_stays_at_home(tmp_path):
    cfg = tiny.config(tmp_path, duration="2 steps", checkpoint_every="1 steps")
    cfg = cfg.model_copy(update={"diffusion": DiffusionConfig(learned_uncertainty=True)})
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    folder, _ = export(cfg, run)
    assert diffusers.UNet2DModel.from_pretrained(folder / "unet")
    again = cfg.model_copy(update={"name": "imported"})
    import_diffusers(folder, again)
    assert tiny.run(again).steps()[-1] == 2


def test_an_export_has_a_card_that_a_hub_reads(trained, tmp_path):
    cfg, run = trained
    sample(cfg, run)
    (samples,) = run.samples(3).iterdir()
    facts = {"set": f"step-000000003/{samples.name}", "count": 24}
    result = {"samples": facts, "data": {"train": {"count": 60}}, "extractors": {"domain": {"sha256": "ab" * 32}}}
    result |= {
        "metrics": {"fd-domain": 1.25},
        "details": {"fd-domain": {"low": 1, "high": 2}},
        "versions": {"mudi": "1"},
        "notes": ["fd-domain: measured on 24 images."],
    }
    write_json(run.results / f"000000003-{samples.name}.json", result)
    folder, _ = export(cfg, run, to=tmp_path / "out")
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(head)
    assert (facts["library_name"], facts["license"]) == ("diffusers", "other") and "diffusion" in facts["tags"]
    assert (folder / "samples.png").read_bytes() == (samples / "grid.png").read_bytes() and "(samples.png)" in text
    for said in (
        "Protocol `squares`",
        "fonts, each with a licence",
        "3 of 8 images (3 steps",
        "CPU process hours on cpu",
    ):
        assert said in text, said
    assert "| fd-domain | 1.25 (1 to 2) | lower |" in text and "24 samples against 60 images of train" in text
    assert "\n- fd-domain: measured on 24 images.\n" in text and "\n- In brackets: the 95% interval" in text
    (folder / "README.md").unlink()  # as a kill leaves it
    export(cfg, run, to=folder)
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize("condition", ["class", "none"])
def test_the_lines_of_a_card_draw_and_its_tag_is_that_of_what_the_model_is_asked_for(
    trained, tmp_path, monkeypatch, condition
):
    cfg, run = trained
    if condition == "none":
        cfg = tiny.revalidated(tiny.config(tmp_path, duration="1 steps"), model={"condition": "none"})
        tiny.prepare(cfg)
        run = tiny.run(cfg)
    folder, _ = export(cfg, run, to=tmp_path / "out")
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    facts, unasked = yaml.safe_load(head), "unconditional-image-generation"
    assert (facts.get("pipeline_tag") == unasked) == (unasked in facts["tags"]) == (condition == "none")
    named = "0 is small, 1 is middle, 2 is large." in text
    assert ("class-conditional" in facts["tags"]) == named == (condition == "class")
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("FOLDER", repr(str(folder))), {})
    assert (tmp_path / "0.png").stat().st_size > 50


def test_a_card_says_what_is_known_of_the_licence(trained, tmp_path):
    cfg, run = trained
    sources = {
        "may be used for non-commercial research only": {"kind": "celeba"},
        "MIT licence": {"kind": "idx", "dataset": "fashion"},
        "The page of `user/set` at the hub says it": {"kind": "hub", "name": "user/set"},
        "was not recorded. Say it here": {"kind": "folder", "path": "mine"},
    }
    for said, source in sources.items():
        write_card(
            tiny.revalidated(cfg, model={"condition": "none"}, data={"source": source}),
            run,
            tmp_path,
            step=3,
            form="diffusers",
        )
        assert said in (tmp_path / "README.md").read_text(), said


def test_exporting_twice_does_nothing_and_never_overwrites(trained, capsys, tmp_path):
    cfg, run = trained
    argv = [str(run.path), "--format", "safetensors"]
    assert export_main(argv) == 0
    first = Path(capsys.readouterr().out.strip())
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert export_main(argv) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="holds something else"):
        export(cfg, run, to=tmp_path / "taken")


def test_a_network_that_does_not_fit_is_refused_with_all_reasons(trained, tmp_path):
    cfg, run = trained
    folder, _ = export(cfg, run, to=tmp_path / "out")
    settings = json.loads((folder / SETTINGS).read_text())
    other = settings | {"class_names": ["x", "y", "z"]}
    other["diffusion"] = other["diffusion"] | {"sigma_data": 0.7}
    (folder / SETTINGS).write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"(?s)other names.*diffusion\.sigma_data: found 0\.5.*0\.7"):
        import_diffusers(folder, cfg.model_copy(update={"name": "other"}))
    assert not RunDir(cfg.runs_dir / "other").path.exists()


def test_a_scheduler_tells_the_process_that_it_was_made_from():
    """Also of betas that stand in a list, and by the name of a schedule with its defaults, as diffusers saves them."""
    for model, process, sampler in CASES.values():
        ours = DiffusionConfig.model_validate(process)
        its = DiffusionConfig.model_validate(process_of(scheduling(ours, SamplerConfig.model_validate(sampler)).config))
        its = its.model_copy(update={"learned_variance": ours.learned_variance})  # the network's channels tell that
        assert disagreements(its, ours) == [], model
        if ours.network_time_input == "timestep":
            assert its.levels.betas == pytest.approx(ours.levels.betas, rel=1e-6)
    eps = DiffusionConfig.model_validate({"parametrisation": "eps", "levels": DDPM})
    for name, levels in {"linear": {}, "squaredcos_cap_v2": {"schedule": "cosine"}}.items():
        config = {**diffusers.DDIMScheduler(beta_schedule=name).config, "_class_name": "DDPMScheduler"}
        found = DiffusionConfig.model_validate(process_of(config))
        assert found.levels.betas == pytest.approx(diffusers.DDIMScheduler(beta_schedule=name).betas.tolist(), rel=2e-4)
        assert (disagreements(found, eps) == []) == (not levels)
    for strange in ({"beta_schedule": "laplace"}, {"prediction_type": "other"}, {"rescale_betas_zero_snr": True}):
        assert process_of({**config, **strange}) is None
    assert process_of({"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000}) is None


def test_another_process_than_the_scheduler_tells_is_refused():
    eps = DiffusionConfig.model_validate({"parametrisation": "eps", "levels": DDPM})
    edm = DiffusionConfig()
    found = "\n".join(disagreements(eps, edm))
    assert "diffusion.parametrisation: found edm, the network was trained with eps" in found and "log_sigma" in found
    assert "sigma_data" in disagreements(edm, DiffusionConfig(sigma_data=0.7))[0]


def test_a_network_that_is_given_timesteps_is_refused_other_timesteps(trained, tmp_path):
    cfg, _ = trained
    process = DiffusionConfig.model_validate({"parametrisation": "eps", "levels": DDPM})
    _, rest = network_of(cfg.model)
    manifest = read_manifest(training_shards(cfg) / "train")
    known = {"shape": (1, 8, 8), "classes": 3, "class_names": tuple(manifest.classes), "diffusion": process}
    module = build_network(cfg.model, shape=(1, 8, 8), classes=3)
    write_safetensors(tmp_path / "out", rest.model_copy(update={**known, "weights": module.state_dict()}))
    again = cfg.model_copy(update={"name": "timesteps", "diffusion": process})
    fewer = DiffusionConfig.model_validate({"parametrisation": "eps", "levels": {**DDPM, "timesteps": 300}})
    with pytest.raises(
        UserError, match=r"diffusion\.levels: found .*timesteps=300.* by the timesteps of .*timesteps=1000"
    ):
        import_diffusers(tmp_path / "out", again.model_copy(update={"diffusion": fewer}))
    assert import_diffusers(tmp_path / "out", again).steps() == [0]


UNETS = {  # of diffusers, and what becomes of them here
    "unet": {  # as google/ddpm-cifar10-32 is; a row for each class and none for "no label", which is added
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "num_class_embeds": 3,
        **{"freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6},
    },
    "diffusers": {  # up and down in two ways, which no network of ours has
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "UpBlock2D"),
    },
}


@pytest.mark.parametrize("kind", UNETS)
def test_a_folder_of_diffusers_alone_says_model_and_process(kind, tmp_path, capsys):
    """What has no equal among our networks is run by diffusers, and is not trained."""
    data, runs = f"data_dir={tmp_path / 'data'}", f"runs_dir={tmp_path / 'runs'}"
    overrides = ["name=x", "data=glyphs16", "data.name=squares", "data.image_size=8", data, runs, "sample.count=3"]
    tiny.prepare(config_from(overrides, given={"model": tiny.UNET}))
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16)}
    unet = diffusers.UNet2DModel(
        **sizes, layers_per_block=1, norm_num_groups=4, attention_head_dim=None, **UNETS[kind]
    ).eval()
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "its")
    sampler = ["kind=ddim", "steps=10", "sigmas.kind=ddpm", "sigmas.spacing=leading", "clip=1"]
    ddim = [f"sample.sampler.{override}" for override in sampler]
    assert main(["import", str(tmp_path / "its"), *overrides, *ddim]) == 0
    captured = capsys.readouterr()
    assert ("downsample_type: found conv and resnet" in captured.err) == (kind == "diffusers")
    run, cfg = existing_run([captured.out.strip()])
    assert (cfg.model.kind, cfg.diffusion.parametrisation) == (kind, "eps")
    found = Reader(open_shards(sample(cfg, run))).read(np.arange(3))
    scheduler = diffusers.DDIMScheduler(set_alpha_to_one=True, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    x = normal(cfg.seed, Stream.SAMPLE_START, torch.arange(3), shape=(1, 8, 8))
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(x, t, class_labels=torch.arange(3) if kind == "unet" else None).sample
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    assert np.abs(found - to_uint8(x).astype(int)).max() <= 1
    assert main(["import", str(tmp_path / "its"), *overrides, "name=y", "diffusion.parametrisation=v"]) == 2
    assert "found v, the network was trained with eps" in capsys.readouterr().err
    if kind == "diffusers":
        assert main(["train", str(run.path)]) == 2
        assert "model.kind: found diffusers" in capsys.readouterr().err
        assert main(["export", str(run.path), "--to", str(tmp_path / "out")]) == 0
        again = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet").state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in unet.state_dict().items())


def test_what_diffusers_cannot_do_is_said():
    with pytest.raises(UserError, match=r"no scheduler for diffusion\.parametrisation=eps"):
        scheduling(DiffusionConfig(parametrisation="eps"), SamplerConfig())
    for row in ("flow", "edm", "v"):  # of schedulers, one reads twice the channels, and only if it shall
        learned = DiffusionConfig.model_validate({"parametrisation": row, "levels": DDPM, "learned_variance": True})
        for kind in ("ddpm", "euler"):
            with pytest.raises(UserError, match="cannot read the variance channels"):
                scheduling(learned, SamplerConfig.model_validate({"kind": kind, "sigmas": {"kind": "ddpm"}}))
    notes = scheduling(DiffusionConfig(), SamplerConfig(kind="heun", clip=1.0)).notes
    assert any("no heun" in note for note in notes) and any("not clipped" in note for note in notes)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"kind": "dpmpp_2m"}, "DPMSolverMultistepScheduler rounds the timesteps"),
        (
            {"kind": "unipc", "sigmas": {"kind": "ddpm", "spacing": "leading"}},
            "understands sigmas.spacing=leading otherwise",
        ),
        ({"kind": "dpmpp_2m_sde", "eta": 0.5, "sigmas": {"kind": "ddpm"}}, "eta=1, not 0.5"),
        ({"kind": "heun", "sigmas": {"sigma_max": 20.0}}, "its own sigma_max"),
        ({"kind": "heun", "sigmas": {"kind": "uniform_t"}}, "not uniform_t"),
        ({"kind": "ddpm", "variance": "large", "sigmas": {"kind": "ddpm"}}, "adds noise to the finished image"),
        ({"kind": "langevin", "sigmas": {"kind": "ddpm"}, "steps": 20}, "no langevin sampler"),
        (
            {"kind": "ddim", "sigmas": {"kind": "ddpm", "spacing": "linspace"}, "steps": 20},
            "steps back by 50 timesteps",
        ),
        ({"kind": "ddim", "sigmas": {"kind": "ddpm"}, "steps": 12}, "steps back by 83 timesteps"),
        ({"kind": "euler", "steps": 1}, "begins at timestep 0"),
        ({"kind": "heun", "churn": {"amount": 3.0}}, "churn is left out"),
    ],
)
def test_what_diffusers_samples_otherwise_is_noted(sampler, message):
    eps = DiffusionConfig.model_validate({"parametrisation": "eps", "levels": DDPM})
    (note,) = scheduling(eps, SamplerConfig.model_validate(sampler)).notes
    assert message in note


@pytest.mark.parametrize(("row", "sigma_data"), [("edm", 0.5), ("edm", 1.0), ("v", 0.5)])
@pytest.mark.parametrize("kind", ["euler", "dpmpp_2m"])
def test_another_start_than_the_scheduler_has_is_noted(row, sigma_data, kind):
    diffusion = DiffusionConfig.model_validate({"parametrisation": row, "sigma_data": sigma_data})
    plan = scheduling(diffusion, SamplerConfig.model_validate({"kind": kind}))
    of_diffusers = getattr(diffusers, plan.config["_class_name"]).from_config(plan.config).init_noise_sigma
    noted = [note for note in plan.notes if "init_noise_sigma" in note]
    assert bool(noted) == (abs(plan.start / of_diffusers - 1) > 1e-9)
    assert all(f"{plan.start:.8g}" in note and f"{of_diffusers:.8g}" in note for note in noted)


def test_a_refused_export_leaves_nothing_and_other_settings_are_not_the_same_folder(trained, capsys):
    cfg, run = trained
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    for wrong in ("train.optim.lr=5", "diffusion.parametrisation=eps"):
        assert main(["export", str(run.path), wrong]) == 2
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before
    unlike = cfg.model_copy(update={"diffusion": DiffusionConfig(parametrisation="eps")})
    with pytest.raises(UserError, match="no scheduler"):
        export(unlike, run, to=run.path / "new" / "folder")
    assert not (run.path / "new").exists()
    assert main(["export", str(run.path)]) == 0
    capsys.readouterr()
    assert main(["export", str(run.path)]) == 0 and "nothing to do" in capsys.readouterr().err
    assert main(["export", str(run.path), "sample.sampler.steps=7"]) == 2
    assert "exists and holds something else" in capsys.readouterr().err


def test_damaged_and_strange_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no network"):
        read(tmp_path)
    _, rest = network_of(UNET)
    write_diffusers(tmp_path / "out", rest)
    config = tmp_path / "out" / "unet" / "config.json"
    whole = config.read_text()
    config.write_text(json.dumps(json.loads(whole) | {"block_out_channels": None}))
    with pytest.raises(UserError, match=r"config\.json cannot be understood"):
        read(tmp_path / "out")
    config.write_text(json.dumps(json.loads(whole) | {"_class_name": "VQModel"}))
    with pytest.raises(UserError, match="_class_name: found VQModel"):
        read(tmp_path / "out")
    config.write_text(whole)
    weights = tmp_path / "out" / "unet" / folders.DIFFUSERS_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(Incomplete, match=r"diffusion_pytorch_model\.safetensors cannot be read"):
        read(tmp_path / "out")
    weights.unlink()
    with pytest.raises(Incomplete, match="does not exist"):
        read(tmp_path / "out")
