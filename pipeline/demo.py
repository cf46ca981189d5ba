"""The demo: a page in the browser that draws with the model of a run, or of an exported folder.

mudi demo RUN_DIR [key=value ...] [--step STEP] [--host 127.0.0.1] [--port 7860]
mudi demo EXPORT [sample.KEY=value ...]

`Studio` decides what to draw, by the code of `sample` and `visualize`; `page` is what a visitor sees of it. Under each
picture stands what makes it again: a command line, or lines of Python for an export, which no other command reads.
"""

import html
import os
import queue
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline import checkpoint, visualize
from pipeline.config.autoencoder import require_latents
from pipeline.config.load import config_from
from pipeline.config.overrides import override_for
from pipeline.config.paths import training_shards
from pipeline.config.registry import SAMPLERS
from pipeline.config.schema import Config
from pipeline.config.schema_diffusion import SamplerConfig
from pipeline.data.pictures import WIDTH, Pixels, enlarged, picture_of, to_uint8
from pipeline.data.reader import Reader
from pipeline.data.shards import ShardDirectory, open_shards
from pipeline.diffusion.build_sampler import Generator
from pipeline.exported import Exported, export_named
from pipeline.inference import asked_for, autocast, guide_model, loaded_objective
from pipeline.metrics.memorisation import pixels as vectors
from pipeline.metrics.nearest import nearest_streamed
from pipeline.objectives.denoising import Denoising
from pipeline.objectives.objective import Objective
from pipeline.runtime import distributed
from pipeline.runtime.errors import UserError
from pipeline.runtime.numerics import set_numerics
from pipeline.runtime.run_dir import RunDir, Step, existing_run, overrides_for, step_of

MOST_IMAGES, MOST_STEPS, MOST_FRAMES, MOST_WAITING = 16, 200, 12, 16
MOST_GUIDANCE = 100
SEARCHED = 20_000  # training images among which the nearest is looked for, at most
_OF_SETS = ("sample.count", "sample.first_seed", "sample.batch", "sample.images_per_shard")
_READ = ("churn", "eta", "variance", "order", "corrector_steps", "corrector_snr", "options")  # not by all samplers


@dataclass(frozen=True)
class Wish:
    """What a visitor asks for. None: as the run's own settings say."""

    seed: int = 0
    count: int = 4
    label: int | None = None  # a class
    attributes: dict[str, int] = field(default_factory=dict)
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None

    def overrides(self, cfg: Config) -> list[str]:
        """As settings of the run that has `cfg`.

        Raises:
            UserError: naming every number that the page does not allow.
        """
        limits = {
            "seed": (self.seed, 0, 2**31),
            "count": (self.count, 1, MOST_IMAGES),
            "steps": (cfg.sample.sampler.steps if self.steps is None else self.steps, 1, MOST_STEPS),
        }
        wrong = [
            f"{name}: found {'nothing' if value is None else value}, expected a whole number from {low} to {high}."
            for name, (value, low, high) in limits.items()
            if not isinstance(value, int) or not low <= value <= high
        ]
        if self.guidance is not None and not abs(self.guidance) <= MOST_GUIDANCE:
            wrong.append(f"guidance: found {self.guidance}, expected a number, at most {MOST_GUIDANCE} either way.")
        if wrong:
            raise UserError(" ".join(wrong))
        asked: dict[str, Any] = {"first_seed": self.seed, "count": self.count}
        # All in one call of the network, as here.
        asked["batch"] = max(cfg.sample.batch, self.count)
        asked["images_per_shard"] = max(cfg.sample.images_per_shard, self.count)
        if self.label is not None:
            asked["classes"] = [self.label]
        if self.attributes:
            asked["attributes"] = self.attributes
        if self.sampler is not None:
            asked |= {"sampler.kind": self.sampler, **_unread(cfg.sample.sampler, self.sampler)}
        if self.steps is not None:
            asked["sampler.steps"] = self.steps
        if self.guidance is not None:
            asked["sampler.guidance.scale"] = self.guidance
        return [override_for(f"sample.{name}", value) for name, value in asked.items()]


def _unread(sampler: SamplerConfig, kind: str) -> dict[str, Any]:
    """The run's settings of its own sampler that another one does not read, back at their defaults."""
    if kind not in SAMPLERS or kind == sampler.kind:
        return {}
    plain = SamplerConfig()
    unread = [n for n in _READ if n not in SAMPLERS[kind].reads and getattr(sampler, n) != getattr(plain, n)]
    defaults = plain.model_dump(mode="json", include=set(unread))
    return {f"sampler.{name}": defaults[name] for name in unread}


class Studio:
    """The model of one checkpoint, loaded once. One picture at a time: the page has a queue."""

    def __init__(self, overrides: Sequence[str], *, step: Step = None) -> None:
        """What `sample` would refuse is refused here. `overrides`: as for `sample`, or of an exported folder."""
        folder = export_named(overrides)
        self.run: RunDir | None = None
        self.export: Exported | None = None
        self.train: ShardDirectory
        self.objective: Objective
        if folder is not None:
            if step is not None:
                raise UserError(f"--step: found {step}, but {folder} is an export, which holds one step. Leave it out.")
            self.export = Exported.opened(folder, overrides[1:])
            self.cfg, self.train = self.export.config(), self.export.data
            self.device = self._device()
            self.objective = self.export.objective(self.cfg, device=self.device)
            made_from = self.export.network.made_from
            self.name, self.step = made_from.get("run") or folder.resolve().name, made_from.get("step")
        else:
            self.run, self.cfg = existing_run(overrides)
            self._overrides = [str(self.run.path), *(override for override in overrides_for(self.run, self.cfg))]
            require_latents(self.cfg)
            asked = self.cfg.sample.step if step is None else step
            self.name, self.step = self.run.path.name, step_of(checkpoint.step_to_read(self.run, asked).name) or 0
            self.device = self._device()
            self.train = open_shards(training_shards(self.cfg) / "train")
            self.objective = loaded_objective(
                self.cfg, self.run, self.train.manifest, step=self.step, device=self.device
            )
        self._guide = guide_model(self.cfg, self.train.manifest, self.device)
        self._reader = Reader(self.train, keep_bytes=2**29)
        asked_for(self.cfg, torch.tensor([0]), self.train)  # raises for what the data has not

    def _device(self) -> torch.device:
        set_numerics(tf32=self.cfg.train.precision == "tf32")
        return distributed.own_device(gpus=self.cfg.cluster.sample.gpus, setting="cluster.sample.gpus")

    @property
    def title(self) -> str:
        """Name and step."""
        return self.name if self.step is None else f"{self.name}, step {self.step}"

    @property
    def notes(self) -> list[str]:
        """What a visitor should know; a sentence each."""
        if self.export is None:
            return ["The same seed gives the same image as `mudi sample`."]
        return self.export.notes

    @property
    def diffusion(self) -> bool:
        """Whether there is a way from noise to image: with steps, a sampler and guidance."""
        return isinstance(self.objective, Denoising)

    @property
    def guided(self) -> bool:
        """Whether guidance can be chosen."""
        return self.diffusion and self.cfg.model.condition != "none"

    @property
    def paints(self) -> bool:
        """Whether it can inpaint: a diffusion model of pixels."""
        return self.diffusion and self.cfg.latents is None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the model can be asked for."""
        return tuple(self.train.manifest.classes) if self.cfg.model.condition == "class" else ()

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes that the model can be asked for."""
        return tuple(self.train.manifest.attributes) if self.cfg.model.condition == "attributes" else ()

    def settings(self, wish: Wish) -> Config:
        """The run's settings with those of a wish, checked as those of any job."""
        overrides = wish.overrides(self.cfg)
        cfg = config_from([*self._overrides, *overrides]) if self.export is None else self.export.config(overrides)
        if wish.label is not None and not 0 <= wish.label < len(self.classes):
            raise UserError(f"class: found number {wish.label}, expected one of {', '.join(self.classes) or 'none'}.")
        return cfg

    @property
    def language(self) -> str:
        """What `again` is said in."""
        return "a command line" if self.export is None else "Python, with mudi installed"

    def again(self, cfg: Config, *, job: Sequence[str] = ("sample",), call: str) -> str:
        """What makes the same picture: the command line of `job`, or, with an export, Python around `call`."""
        return self._python(call) if self.run is None else self._command(self.run, cfg, job)

    def _python(self, call: str) -> str:
        """Lines that save the picture that `call`, which may say `studio`, returns."""
        overrides = [] if self.export is None else [str(self.export.folder.resolve()), *self.export.overrides]
        name = call.partition("(")[0]
        imports = sorted({"Studio", "Wish", name})
        return (
            f"from PIL import Image\nfrom pipeline.demo import {', '.join(imports)}\n\nstudio = Studio({overrides!r})\n"
            f'Image.fromarray({call}).save("picture.png")'
        )

    def _command(self, run: RunDir, cfg: Config, job: Sequence[str]) -> str:
        """`job`: the command, and what stands before the settings."""
        name, *options = job
        overrides = overrides_for(run, cfg)
        if name != "sample":  # these count no images, and take their seeds as an option
            overrides = [w for w in overrides if w.split("=")[0] not in _OF_SETS]
        return shlex.join(["mudi", name, str(run.path), *options, "--step", str(self.step), *overrides])

    def draw(self, cfg: Config) -> Iterator[Pixels]:
        """Estimates of the images, uint8 [B, H, W, C], a few on the way; the last are what `sample` makes."""
        seeds = torch.arange(cfg.sample.count) + cfg.sample.first_seed
        if self.diffusion:
            yield from _on_the_way(lambda show: self._diffused(cfg, seeds, show))
            return
        with torch.inference_mode(), autocast(cfg, self.device):
            condition = asked_for(cfg, seeds, self.train).to(self.device)
            yield to_uint8(
                self.objective.generate(
                    self.objective.networks,
                    seeds.to(self.device),
                    condition.labels,
                    attributes=condition.attributes,
                    sampler=cfg.sample.sampler,
                )
            )

    def model(self, cfg: Config) -> visualize.Model:
        """The model as `visualize` has it."""
        if not isinstance(self.objective, Denoising):
            raise UserError(f"model.kind={cfg.model.kind} makes images in one step: there is no way to change.")
        return visualize.Model(cfg, self.objective, self._guide, self.train, self.device)

    @torch.inference_mode()
    def _diffused(self, cfg: Config, seeds: Tensor, show: Callable[[Pixels], None]) -> None:
        model = self.model(cfg)
        generator = model.generator(seeds)
        each, call = max(cfg.sample.sampler.calls // MOST_FRAMES, 1), 0

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal call
            x0, call = generator.denoise(x, sigma), call + 1
            if call % each == 0:
                show(model.pixels(x0))
            return x0

        with autocast(cfg, self.device):
            show(model.pixels(Generator(denoise, generator.sampler)(model.start(seeds), model.fresh(seeds))))

    def nearest(self, images: Pixels) -> tuple[Pixels, str]:
        """The nearest training image of each image, by the distance of their pixels, and how many were searched."""
        manifest = self.train.manifest
        if self.export is not None:
            raise UserError("The training images are not here: an export holds the model alone.")
        if manifest.kind == "latents" or self._reader.count == 0:
            raise UserError("The training images are not here: this model was trained on their latents.")
        count = min(self._reader.count, SEARCHED)
        numbers = np.linspace(0, self._reader.count - 1, count).astype(np.int64)  # spread over all
        blocks = ((k, vectors(self._reader.read(numbers[k : k + 1024]))) for k in range(0, count, 1024))
        found = nearest_streamed(vectors(images), blocks)
        return self._reader.read(numbers[found.index[:, 0]]), f"Nearest of {count:,} of {self._reader.count:,}"


class _Gone(Exception):
    """The visitor has left."""


def _on_the_way(work: Callable[[Callable[[Pixels], None]], None]) -> Iterator[Pixels]:
    """What `work` shows while it goes on in a thread of its own; a visitor who leaves ends it."""
    shown: queue.Queue[Pixels | BaseException | None] = queue.Queue(maxsize=MOST_FRAMES)
    gone = threading.Event()

    def put(item: Pixels | BaseException | None) -> None:
        while not gone.is_set():
            try:
                return shown.put(item, timeout=0.2)
            except queue.Full:
                continue
        raise _Gone

    def run() -> None:
        try:
            work(put)
            put(None)
        except _Gone:
            return
        except BaseException as error:  # raised again where the visitor waits
            put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while (item := shown.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()


def picture(images: Pixels) -> Pixels:
    """Images in one row or two, large enough to look at: [H, W, 3]."""
    return picture_of(images, columns=len(images) if len(images) <= 4 else min(-(-len(images) // 2), 8))


def _shown(call: Callable[[], Any], gradio: Any) -> Any:
    """The result of a call; what a person can act on becomes a message on the page."""
    try:
        return call()
    except UserError as error:
        raise gradio.Error(html.escape(str(error)), duration=None, print_exception=False) from error


def page(studio: Studio, folder: Path) -> Any:
    """The page, as Gradio's Blocks. `folder`: for the files of inpainting; nothing is written elsewhere."""
    import gradio as gr

    once = {"concurrency_limit": 1, "concurrency_id": "model"}
    with gr.Blocks(title=f"mudi: {studio.name}", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown(f"## {studio.title}\n{' '.join(studio.notes)}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                asked = _controls(gr, studio)
            with gr.Column(scale=2, min_width=400):
                with gr.Tab("draw"):
                    draw = gr.Button("draw", variant="primary")
                    drawn = _image(gr, "images")
                    near = gr.Checkbox(False, label="the nearest training images", visible=studio.export is None)
                    searched, nearest = gr.Markdown(visible=False), _image(gr, "nearest", visible=False)
                with gr.Tab("interpolate", visible=studio.diffusion), gr.Row():
                    other_seed = gr.Number(1, label="to seed", precision=0)
                    other = gr.Dropdown(
                        [("stay", -1), *_numbered(studio.classes)],
                        value=-1,
                        label="or to class",
                        visible=bool(studio.classes),
                    )
                    frames = gr.Slider(3, MOST_IMAGES, 8, step=1, label="images")
                    go = gr.Button("interpolate", variant="primary")
                    between = _image(gr, "from one to the other")
                with gr.Tab("inpaint", visible=studio.paints):
                    take = gr.Button("take the image of the seed")
                    editor = _editor(gr)
                    paint = gr.Button("inpaint", variant="primary")
                    painted = _image(gr, "what was given, and each seed's own")
                    files = gr.File(label="image and mask, as the command reads them", file_count="multiple")
                command = gr.Textbox(
                    label=f"the same from {studio.language}",
                    buttons=["copy"],
                    lines=2,
                    interactive=False,
                    elem_id="command",
                )

        def on_draw(near: bool, *values: Any) -> Iterator[Any]:
            own = _wish(studio, values)
            cfg = _shown(lambda: studio.settings(own), gr)
            line = studio.again(cfg, call=f"drawing(studio, {own!r})")
            hidden = gr.Markdown(visible=False), gr.Image(visible=False)
            images: Pixels | None = None
            for images in studio.draw(cfg):
                yield picture(images), line, *hidden
            if near and images is not None:
                found, caption = _shown(lambda: studio.nearest(images), gr)
                note = gr.Markdown(f"{caption} training images", visible=True)
                yield picture(images), line, note, gr.Image(picture(found), visible=True)

        def on_interpolate(to: int | None, to_class: int, frames: int, *values: Any) -> Any:
            chosen, own = (None if to_class < 0 else to_class), _wish(studio, values)
            return _shown(lambda: interpolated(studio, own, to=to, to_class=chosen, frames=frames), gr)

        def on_take(*values: Any) -> Any:
            *_, images = studio.draw(_shown(lambda: studio.settings(replace(_wish(studio, values), count=1)), gr))
            image = images[0] if images.shape[-1] == 3 else images[0].repeat(3, axis=2)
            return enlarged(image, factor=max(round(WIDTH / 2 / image.shape[1]), 1))

        def on_paint(drawn: dict[str, Any] | None, *values: Any) -> Any:
            return _shown(lambda: inpainted(studio, _wish(studio, values), drawn, folder), gr)

        gr.on(
            [draw.click, asked[0].submit],
            on_draw,
            [near, *asked],
            [drawn, command, searched, nearest],
            api_name="draw",
            **once,
        )
        go.click(
            on_interpolate, [other_seed, other, frames, *asked], [between, command], api_name="interpolate", **once
        )
        take.click(on_take, asked, editor, api_name="take", **once)
        paint.click(on_paint, [editor, *asked], [painted, command, files], api_name="inpaint", **once)
    return blocks.queue(max_size=MOST_WAITING)


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, number) for number, name in enumerate(names)]


def _controls(gr: Any, studio: Studio) -> list[Any]:
    """What all tabs read, in the order of `_wish`."""
    sampler = studio.cfg.sample.sampler
    seed = gr.Number(studio.cfg.sample.first_seed, label="seed of the first image", precision=0)
    count = gr.Slider(1, MOST_IMAGES, 4, step=1, label="images")
    names = [("by seed, as in sampling", -1), *_numbered(studio.classes)]
    label = gr.Dropdown(names, value=-1, label="class", visible=bool(studio.classes))
    with_ = gr.Dropdown(list(studio.attributes), multiselect=True, label="with", visible=bool(studio.attributes))
    without = gr.Dropdown(list(studio.attributes), multiselect=True, label="without", visible=bool(studio.attributes))
    asked = sampler.guidance
    guides = f"guidance ({'w of Ho and Salimans, ' if asked.convention == 'ho' else ''}{asked.off}: none)"
    guidance = gr.Number(asked.scale, label=guides, visible=studio.guided)
    kind = gr.Dropdown(list(SAMPLERS.names()), value=sampler.kind, label="sampler", visible=studio.diffusion)
    steps = gr.Number(sampler.steps, label="steps", precision=0, visible=studio.diffusion)
    return [seed, count, label, with_, without, kind, steps, guidance]


def _wish(studio: Studio, values: Sequence[Any]) -> Wish:
    """What stands in the controls."""
    seed, count, label, with_, without, kind, steps, guidance = values
    condition = {**dict.fromkeys(with_ or (), 1), **dict.fromkeys(without or (), 0)}
    condition = {name: value for name, value in condition.items() if name in studio.attributes}
    chosen = None if label is None or label < 0 else int(label)
    if not studio.diffusion:
        return Wish(seed, count, chosen, condition)
    scale = guidance if studio.guided else None
    return Wish(seed, count, chosen, condition, kind, steps, None if scale is None else float(scale))


def _editor(gr: Any) -> Any:
    return gr.ImageEditor(
        type="numpy",
        label="give an image, or take one; paint over what is to be drawn anew",
        sources=("upload",),
        transforms=(),
        layers=False,
        brush=gr.Brush(colors=["#ff0000"], color_mode="fixed"),
        height=400,
    )


def _image(gr: Any, label: str, **options: Any) -> Any:
    return gr.Image(
        label=label, show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"], **options
    )


def drawing(studio: Studio, wish: Wish) -> Pixels:
    """The picture of a wish."""
    *_, images = studio.draw(studio.settings(wish))
    return picture(images)


def interpolated(
    studio: Studio, wish: Wish, *, to: int | None, to_class: int | None, frames: int
) -> tuple[Pixels, str]:
    """From the seed of a wish to another one, or from its class to another one; the picture and its command line."""
    cfg = studio.settings(replace(wish, count=1))
    if not 2 <= frames <= MOST_IMAGES:
        raise UserError(f"images: found {frames}, expected 2 to {MOST_IMAGES}.")
    model, asked = studio.model(cfg), visualize.Request("interpolate", [wish.seed], frames=frames)
    if to_class is not None:
        first = int(asked_for(cfg, torch.tensor([wish.seed]), studio.train).labels[0])
        asked = replace(asked, classes=(first, to_class))
        images = visualize.between_classes(model, torch.tensor([wish.seed]), (first, to_class), frames=frames)
        options = ["--seeds", str(wish.seed), "--classes", f"{first},{to_class}"]
    else:
        if not isinstance(to, int) or not 0 <= to <= 2**31:
            raise UserError(f"to seed: found {to}, expected a whole number from 0 to {2**31}.")
        asked = replace(asked, seeds=[wish.seed, to])
        images = visualize.interpolation(model, torch.tensor([wish.seed, to]), frames=frames)
        options = ["--seeds", f"{wish.seed},{to}"]
    job = ("visualize", "interpolate", *options, "--frames", str(frames))
    call = f"interpolated(studio, {wish!r}, to={to}, to_class={to_class}, frames={frames})[0]"
    line = studio.again(cfg, job=job, call=call)
    return picture_of(images, columns=frames, names=visualize.row_names(model, asked, rows=1)), line


def inpainted(studio: Studio, wish: Wish, drawn: dict[str, Any] | None, folder: Path) -> tuple[Pixels, str, list[str]]:
    """What each seed draws where a visitor painted; the picture, its command line, and the two files that it reads.

    `drawn`: of Gradio's editor, "background" uint8 [H, W, 3 or 4] and "layers", opaque where painted.
    """
    cfg = studio.settings(wish)
    if not studio.paints:
        raise UserError("inpainting needs a diffusion model of pixels.")
    if not drawn or drawn.get("background") is None:
        raise UserError("There is no image. Give one, or take the image of the seed.")
    channels, height, width = studio.train.manifest.layout.shape
    image = Image.fromarray(np.asarray(drawn["background"])[..., :3])
    if image.width * height != image.height * width:
        raise UserError(
            f"The image has {image.width} x {image.height} pixels, the model {width} x {height}. Crop it first."
        )
    image = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BOX)
    opaque = [np.asarray(layer)[..., 3] for layer in drawn.get("layers") or ()]
    covered = np.max(opaque, axis=0) if opaque else np.zeros((height, width), np.uint8)
    mask = np.asarray(Image.fromarray(covered).resize((width, height), Image.Resampling.BOX)) > 127
    place = Path(tempfile.mkdtemp(dir=folder, prefix="inpaint-"))
    paths = {"--image": place / "image.png", "--mask": place / "mask.png"}
    image.save(paths["--image"])
    Image.fromarray(mask.astype(np.uint8) * 255).save(paths["--mask"])
    if not mask.any():
        raise UserError("Nothing is painted over. Paint where something is to be drawn anew.")
    given = [str(path) for path in paths.values()]
    call = f"filled(studio, {wish!r}, image={given[0]!r}, mask={given[1]!r})"
    options = [text for name, path in paths.items() for text in (name, str(path))]
    job = ("visualize", "inpaint", "--seeds", f"{wish.seed}-{wish.seed + wish.count - 1}", *options)
    return filled(studio, wish, image=given[0], mask=given[1]), studio.again(cfg, job=job, call=call), given


def filled(studio: Studio, wish: Wish, *, image: str, mask: str) -> Pixels:
    """The picture of an image, and of what each seed of a wish draws where a mask is white."""
    model, seeds = studio.model(studio.settings(wish)), torch.arange(wish.count) + wish.seed
    found = visualize.read_image(Path(image), model)
    images = visualize.inpainted(model, found, seeds, mask=visualize.read_mask(Path(mask), model))
    return picture_of(images, columns=1 + wish.count)


def main(overrides: list[str], *, step: Step = None, host: str = "127.0.0.1", port: int | None = None) -> int:
    """`mudi demo`: serve the page until interrupted."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    with tempfile.TemporaryDirectory(prefix="mudi-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio as gr
        except ImportError as error:
            raise UserError(f"demo needs gradio, which is not installed ({error}): pip install 'mudi[demo]'") from error
        studio = Studio(overrides, step=step)
        blocks = page(studio, Path(folder))
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=gr.themes.Default(**fonts),
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            footer_links=[],
            max_file_size="20mb",
            allowed_paths=[folder],
            max_threads=8,
        )
        print(f"{blocks.local_url}  Ctrl+C ends it", flush=True)
        blocks.block_thread()
    return 0
