"""What people add: one registry each for data sources, networks, objectives, samplers and metrics. Torch-free.

A registration gives a kind's name, its settings and the place of its implementation, `"package.module:name"`, which is
imported only when it is built. Everything that has to choose among kinds asks the registry, so that a plug-in (see
`plugins` in the config, and docs/extending.md) adds one without any change to this package.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, Union, get_args

from pydantic import BaseModel, Field, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from pipeline.config.base import Settings
from pipeline.runtime.errors import UserError, did_you_mean

Direction = Literal["minimize", "maximize"]
Role = Literal["denoiser", "autoencoder", "vector_autoencoder", "generator"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One registered kind. `place`: the implementation, as "package.module:name"; "" where there is none to load."""

    name: str
    settings: type[Settings] | None = None
    place: str = ""

    @property
    def added(self) -> bool:
        """Whether it is of a plug-in, with something to load."""
        return bool(self.place) and not self.place.startswith(("pipeline.", "data_prep."))

    def missing(self) -> str:
        """What is wrong with the place, without importing it: torch may come with it; "" where all is well."""
        module, colon, name = self.place.partition(":")
        try:
            found = bool(colon and name) and importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        expected = 'expected "module:name" of a module that can be imported'
        return "" if found else f"'{self.name}' is registered as '{self.place}', {expected}."

    def load(self) -> Any:
        """Import the implementation."""
        return self._imported(self.place)

    def _imported(self, place: str) -> Any:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"'{self.name}' is registered as {place}, which cannot be imported ({error}). "
                'Expected "package.module:name" of a module that can be imported.'
            ) from error


K = TypeVar("K", bound=Kind)
C = TypeVar("C", bound=type[Settings])


class Registry(Generic[K]):
    """Kinds by name, in the order of their registration. `setting`: where a config names one, for error messages."""

    def __init__(self, setting: str) -> None:
        """An empty registry."""
        self.setting = setting
        self._kinds: dict[str, K] = {}
        self._adapter: TypeAdapter[Any] | None = None

    def add(self, kind: K) -> None:
        """Register a kind. The same one again is accepted, as when a module is loaded anew; another is an error."""
        before = self._kinds.get(kind.name)
        if before is not None and before.place != kind.place:
            raise UserError(
                f"{self.setting}: '{kind.name}' is registered twice, as {before.place} and as {kind.place}. "
                "Give one of them another name."
            )
        self._kinds[kind.name] = kind
        self._adapter = None

    @property
    def known(self) -> Mapping[str, K]:
        """All kinds by name, the package's own first imported where nothing has done so yet."""
        _register_ours()
        return self._kinds

    def __iter__(self) -> Iterator[K]:
        return iter(tuple(self.known.values()))

    def __len__(self) -> int:
        return len(self._kinds)

    def __contains__(self, name: object) -> bool:
        return name in self.known

    def __getitem__(self, name: str) -> K:
        if name not in self.known:
            raise UserError(f"{self.setting}: {self.unknown(name)}")
        return self._kinds[name]

    def unknown(self, name: str) -> str:
        """The sentence about a name that is not registered, with the nearest that is."""
        return f"found '{name}', expected one of {', '.join(self.known)}.{did_you_mean(name, self.known)}"

    def names(self, fits: Callable[[K], bool] = lambda _: True) -> tuple[str, ...]:
        """Names of all kinds, or of those that fit."""
        return tuple(kind.name for kind in self if fits(kind))

    def classes(self) -> tuple[type[Settings], ...]:
        """The settings classes of all kinds."""
        return tuple(kind.settings for kind in self if kind.settings is not None)

    def validate(self, value: Any) -> Any:
        """Settings of any registered kind, told apart by `kind`. Pydantic's errors name the kind in their place."""
        if self._adapter is None:
            kinds: Any = Annotated[Union[self.classes()], Field(discriminator="kind")]  # noqa: UP007
            self._adapter = TypeAdapter(kinds)
        return self._adapter.validate_python(value)


@cache
def _register_ours() -> None:
    """Import the modules in which the package's own kinds are registered, beside their settings."""
    importlib.import_module("pipeline.config.schema")


class Choice(Settings):
    """Base of the settings of a registry's kinds. A field of a base with `registry` takes any kind of that registry."""

    registry: ClassVar[Registry[Any]]
    kind: str

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The base stands for all kinds that are registered at the time; a kind's own class for itself."""
        if "registry" not in vars(cls):
            return handler(source)
        return core_schema.no_info_before_validator_function(cls.registry.validate, core_schema.any_schema())


def is_choice(cls: Any) -> bool:
    """Whether a class is the base that stands for all kinds of a registry."""
    return isinstance(cls, type) and issubclass(cls, Choice) and "registry" in vars(cls)


def tag(settings: type[BaseModel]) -> str:
    """The one value that `kind` of a settings class may have; "" where it has no such field."""
    field = settings.model_fields.get("kind")
    return str(next(iter(get_args(field.annotation)), "")) if field else ""


def _tag(settings: type[Settings]) -> str:
    if not (name := tag(settings)):
        raise UserError(f'{settings.__name__}: expected a field `kind: Literal["its_name"]`, by which it is chosen.')
    return name


class Looked(NamedTuple):
    """What the names of files tell of a source: how many images, and what else there is to say, in words."""

    images: int
    said: str


@dataclass(frozen=True, kw_only=True)
class SourceKind(Kind):
    """A source of images. `place`: `listing(settings, folder) -> data_prep.items.Listing`.

    What is known before images are listed; None: nothing. A source whose settings decide it overrides the methods.
    """

    official: bool = (
        False  # the same images wherever its files lie: a `KnownSource`, `listing` is given their folder too
    )
    classes: int | None = None  # their number
    attributes: tuple[str, ...] | None = ()
    splits: tuple[str, ...] | None = None  # of split.rule=official
    look: str = ""  # the place of `look(settings, folder)`, which raises what the names of files say is wrong

    def check(self, settings: Settings, folder: Path) -> Looked | None:
        """Look at a source that is there, before anything is queued: names and tables, no images, nothing unpacked.

        Raises:
            UserError: as listing the images would.
        """
        found = self._imported(self.look)(settings, folder) if self.look else None
        return found if isinstance(found, Looked) else None


@dataclass(frozen=True, kw_only=True)
class NetworkKind(Kind):
    """A network. `place`: a module of (settings, shape, *, classes, attributes), a denoiser's also of `outputs`."""

    is_a: Role  # what it is called for
    objective: str  # what trains it unless the config says otherwise
    blocks: bool = False  # made of `pipeline.models.blocks`, which can be computed again to save memory


@dataclass(frozen=True, kw_only=True)
class ObjectiveKind(Kind):
    """An objective. `place`: a class of (config, manifest), see `pipeline.objectives.objective`."""

    trains: tuple[Role, ...]  # networks that it takes
    samples: bool = True  # makes images from seeds
    diffusion: bool = False  # a `Denoising`: images come about in steps
    graphs: bool = False  # a CUDA graph can hold a training step: see `train.cuda_graph`


@dataclass(frozen=True, kw_only=True)
class SamplerKind(Kind):
    """A sampler. `place`: a function (denoise, x, sigmas, **options) -> x.

    `settings`: of `sample.sampler.options`, which are handed over by name.
    """

    reads: tuple[str, ...] = ()  # settings of `sample.sampler` beside those that all read
    options: Callable[[Any], dict[str, Any]] | None = None  # the function's keywords from them; None: by name
    noise: bool = False  # adds fresh noise, and so takes `noise`
    calls: Callable[[Any], int] = lambda sampler: int(sampler.steps)  # of the denoiser, for one image


@dataclass(frozen=True, kw_only=True)
class MetricKind(Kind):
    """A metric. Its numbers are called `name`, or `name-...` after the network and the variant.

    `place`: a function of `pipeline.metrics.suite.View`; "": a job measures it in its own way. `settings`: of
    `evaluate.options.NAME`.
    """

    direction: Direction | None  # None: neither end is better by itself
    also: tuple[str, ...] = ()  # other first parts of its names
    usual: tuple[str, ...] = ()  # names that tables show first, in the order of registration
    networks: tuple[str, ...] = ()  # whose features it is measured in; (): those of all
    needs: Literal["reference", "logits", "attributes", "image"] = "reference"  # or what it reads without one
    least_size: int = 1  # pixels of a side of square images
    full: bool = True  # only in the deepest features of a network
    least: float | None = None  # what a smaller number counts as: that of an unbiased estimate
    note: Callable[[str, float], str] = lambda name, value: ""  # noqa: ARG005  # what a reader of one number should know
    meaning: str = ""  # what its number says, for somebody who sees it for the first time
    version: int = 1  # raised when the same features would give other numbers
    variants: bool = True  # only VARIANTS follow its name; False: anything may


SOURCES: Registry[SourceKind] = Registry("data.source.kind")
NETWORKS: Registry[NetworkKind] = Registry("model.kind")
OBJECTIVES: Registry[ObjectiveKind] = Registry("objective.kind")
SAMPLERS: Registry[SamplerKind] = Registry("sample.sampler.kind")
METRICS: Registry[MetricKind] = Registry("metric")
_ALL: tuple[Registry[Any], ...] = (SOURCES, NETWORKS, OBJECTIVES, SAMPLERS, METRICS)


class _Registered(Generic[K]):
    """A decorator `@kind("package.module:implementation", **facts)` of settings; facts are the fields of its kind."""

    def __init__(self, registry: Registry[K], kind: type[K]) -> None:
        self._registry, self._kind = registry, kind

    def __call__(self, place: str, **facts: Any) -> Callable[[C], C]:
        def register(settings: C) -> C:
            self._registry.add(self._kind(name=_tag(settings), settings=settings, place=place, **facts))
            return settings

        return register


source = _Registered(SOURCES, SourceKind)
network = _Registered(NETWORKS, NetworkKind)
objective = _Registered(OBJECTIVES, ObjectiveKind)


def sampler(name: str, place: str, **facts: Any) -> None:
    """Register a sampler: see `SamplerKind`."""
    SAMPLERS.add(SamplerKind(name=name, place=place, **facts))


def metric(name: str, place: str = "", *, direction: Direction | None, **facts: Any) -> None:
    """Register a metric: see `MetricKind`."""
    if direction not in (*get_args(Direction), None):
        raise UserError(f"metric {name}: found direction={direction!r}, expected minimize, maximize or None.")
    METRICS.add(MetricKind(name=name, place=place, direction=direction, **facts))


VARIANTS = {  # networks, layers, ways to resize, and the extrapolation to infinitely many samples
    *("domain", "inception", "dinov2", "clip"),
    *("64", "192", "768", "2048", "spatial", "logits"),
    *("tf1", "clean", "torchmetrics", "infinity"),
}


def known_metric(name: str) -> MetricKind | None:
    """The metric that a number's name is of: `fd-domain@valid`, `valid/psnr`, `fid-768`; None for an unknown name."""
    base = name.rpartition("/")[2].partition("@")[0]
    found = [
        (len(first), kind)
        for kind in METRICS
        for first in (kind.name, *kind.also)
        if base == first
        or (base.startswith(f"{first}-") and (not kind.variants or {*base[len(first) + 1 :].split("-")} <= VARIANTS))
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def direction(name: str) -> Direction | None:
    """Whether a metric is to be small or large; None where neither end is better by itself.

    Raises:
        UserError: for a name that no registered metric has.
    """
    kind = known_metric(name)
    if kind is None:
        raise UserError(METRICS.unknown(name.rpartition("/")[2].partition("@")[0]))
    return kind.direction


def higher_is_better(name: str) -> bool | None:
    """Whether the larger value is the better one; None for a name that no metric has, or without a direction."""
    kind = known_metric(name)
    return None if kind is None or kind.direction is None else kind.direction == "maximize"


def better(name: str, value: float, best: float) -> bool:
    """Whether a value of a metric is better than the best so far. A metric without a direction is never better."""
    return {"minimize": value < best, "maximize": value > best, None: False}[direction(name)]


def registered() -> int:
    """How many kinds there are: whatever remembers something of the schema asks whether it still holds."""
    return sum(map(len, _ALL))


def import_plugins(names: Any) -> None:
    """Import the modules that a config names, which register their kinds; before the config is checked.

    They are looked for as any module is (installed, or on PYTHONPATH), then in the current folder.

    Raises:
        UserError: for a module that is not found, or fails.
    """
    if not isinstance(names, Sequence) or isinstance(names, str):
        return  # the schema says what it expected instead
    here = str(Path.cwd())
    for name in map(str, names):
        if name not in sys.modules and here not in sys.path:
            sys.path.append(here)  # last: nothing here takes the place of an installed module
        try:
            importlib.import_module(name)
        except UserError:
            raise
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"plugins: '{name}' imports '{error.name}', which is not installed.") from error
            raise UserError(
                f"plugins: found no module '{name}', expected {name.replace('.', '/')}.py in the current folder "
                f"({here}) or on PYTHONPATH. A job starts in the folder that it was submitted from."
            ) from error
        except Exception as error:
            raise UserError(f"plugins: '{name}' fails when it is imported: {type(error).__name__}: {error}") from error
