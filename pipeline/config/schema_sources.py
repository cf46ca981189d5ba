"""Settings of the sources of images: one class a source family, registered with the function that lists its images, and
what a source says of its classes, attributes and splits before any image has been read. Torch-free.

`path` of a known data set is the folder that holds its official files; None: they are downloaded by `fetch` into
`<data_dir>/downloads/<kind>`, from `urls`. Names of files are looked for in that folder, official ones first.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.config.base import Settings
from pipeline.config.registry import SOURCES, Choice, source

_THREE, _TWO = ("train", "valid", "test"), ("train", "test")
CELEBA = (  # the official file's names, in its order (Liu et al. 2015)
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
)
SPLITS = ("train", "valid", "test")
ALIASES = {  # what others call a split
    **dict.fromkeys(("val", "validation", "dev", "valid_set", "validation_set"), "valid"),
    **dict.fromkeys(("training", "train_set", "training_set"), "train"),
    **dict.fromkeys(("testing", "test_set", "testing_set"), "test"),
}


class Download(Settings):
    """One file of a data set. `checksum`: "sha256:..." or "md5:..." of the whole file, where it is published."""

    url: str = Field(pattern=r"^https?://")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    checksum: str | None = Field(None, pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")


def split_name(name: str) -> str:
    """Our name of a split, whatever its case; a name that is not known stays as it is."""
    lower = name.strip().lower()
    return lower if lower in SPLITS else ALIASES.get(lower, name)


class Source(Choice):
    """The base of every source's settings, and the type of a field that takes any registered kind.

    What the source knows of its data before it is listed; None: not known yet.
    """

    registry = SOURCES

    @property
    def own(self) -> tuple[str, Path] | None:
        """The setting that names the person's own files, and their place; None: there are none."""
        path = getattr(self, "path", None)
        return ("path", path) if path else None

    @property
    def needs_internet(self) -> bool:
        """Whether something has to be downloaded."""
        return False

    def class_count(self) -> int | None:
        """How many classes there will be."""
        return SOURCES[self.kind].classes

    def class_names(self) -> tuple[str, ...] | None:
        """What the classes will be called."""
        return None

    def attribute_names(self) -> tuple[str, ...] | None:
        """Which attributes there will be."""
        return SOURCES[self.kind].attributes

    def official_splits(self) -> tuple[str, ...] | None:
        """The splits of split.rule=official."""
        return SOURCES[self.kind].splits


class KnownSource(Source):
    """A published data set: the same images wherever its files lie."""

    path: Path | None = None
    urls: tuple[Download, ...] = ()

    @property
    def needs_internet(self) -> bool:
        """Yes, unless the files are here."""
        return self.path is None

    @property
    def download_name(self) -> str:
        """The folder below `<data_dir>/downloads`."""
        return self.kind


@source("data_prep.sources.glyphs:listing", look="data_prep.sources.glyphs:look")
class GlyphSource(Source):
    """Letters rendered from fonts, centred by their ink box. Labels are letters; each sample's json has the font."""

    kind: Literal["glyphs"]
    fonts: Path | None = None  # a folder or tar of fonts; None: those of `urls`, or the ones that matplotlib ships
    urls: tuple[Download, ...] = ()  # fonts that `fetch` brings into <data_dir>/downloads/fonts where `fonts` is None
    choose: tuple[str, ...] = ()  # names of font files, without their ending, that are used; (): every usable one
    alphabet: str = Field("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_length=1)
    scales: tuple[float, ...] = (0.6, 0.75, 0.9)  # longer side of the ink box as a share of the image
    ink: int = Field(255, ge=0, le=255)
    paper: int = Field(0, ge=0, le=255)

    @property
    def own(self) -> tuple[str, Path] | None:
        """The person's fonts."""
        return ("fonts", self.fonts) if self.fonts else None

    @property
    def needs_internet(self) -> bool:
        """Whether fonts have to be downloaded."""
        return self.fonts is None and bool(self.urls)

    def class_count(self) -> int | None:
        """How many classes there will be."""
        return len(self.alphabet)

    def class_names(self) -> tuple[str, ...] | None:
        """The letters, sorted."""
        return tuple(sorted(set(self.alphabet)))


@source("data_prep.sources.folder:listing", look="data_prep.sources.folder:look")
class FolderSource(Source):
    """A person's own images in a folder, zip or tar: one folder per class, or flat, or with a table of labels."""

    kind: Literal["folder"]
    path: Path
    labels: Literal["auto", "folders", "none"] = "auto"  # auto: folders where every image lies in one, else none
    # Whether the folders at the top are splits (train/, valid/, test/), for split.rule=official. None: they are not,
    # and those that are named like splits are refused.
    splits: bool | None = None
    table: str | None = None  # a .csv, .tsv or .jsonl in the folder, or a path: its labels are used, not the folders
    file_column: str | None = None  # None: the first of file_name, file, image, path, filename, image_id
    label_column: str | None = None  # None: label or class, where there is one
    attribute_columns: tuple[str, ...] = ()  # columns of 0 and 1 (-1 and 1, no and yes), or values of the label column

    def class_count(self) -> int | None:
        """None where nobody wants labels."""
        return 0 if self.labels == "none" and self.label_column is None else None

    def attribute_names(self) -> tuple[str, ...] | None:
        """Which attributes there will be."""
        return self.attribute_columns


@source(
    "data_prep.sources.celeba:listing",
    look="data_prep.sources.celeba:files",
    official=True,
    classes=0,
    attributes=tuple(CELEBA.split()),
    splits=_THREE,
)
class CelebaSource(KnownSource):
    """CelebA, aligned: the official zip, or its images in a folder or tar; 40 attributes; the official partition."""

    kind: Literal["celeba"]
    images: str | None = None  # None: img_align_celeba.zip, or the folder img_align_celeba
    attributes: str | None = None  # None: list_attr_celeba.txt, or list_attr_celeba.csv
    partition: str | None = None  # None: list_eval_partition.txt or .csv, where it is there


@source(
    "data_prep.sources.flowers102:listing",
    look="data_prep.sources.flowers102:files",
    official=True,
    classes=102,
    splits=_THREE,
)
class FlowersSource(KnownSource):
    """Oxford Flowers 102: 102flowers.tgz (or jpg/), imagelabels.mat, setid.mat."""

    kind: Literal["flowers102"]
    images: str | None = None


@source(
    "data_prep.sources.cifar10:listing",
    look="data_prep.sources.cifar10:batches",
    official=True,
    classes=10,
    splits=_TWO,
)
class CifarSource(KnownSource):
    """CIFAR-10: the archive or folder of the python or of the binary version; both give the same shards."""

    kind: Literal["cifar10"]


@source("data_prep.sources.idx:listing", look="data_prep.sources.idx:files", official=True, splits=_TWO)
class IdxSource(KnownSource):
    """MNIST and what looks like it: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gz or not. t10k is test."""

    kind: Literal["idx"]
    dataset: str = "mnist"  # names the folder of downloads
    classes: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

    @property
    def download_name(self) -> str:
        """The data set's own name."""
        return self.dataset

    def class_count(self) -> int | None:
        """How many classes there will be."""
        return len(self.classes)

    def class_names(self) -> tuple[str, ...] | None:
        """As the settings have them."""
        return self.classes


@source("data_prep.sources.lsun:listing", official=True, classes=0)
class LsunSource(KnownSource):
    """One LSUN category: the lmdb export (folder or zip), or its images in a folder, zip or tar."""

    kind: Literal["lsun"]
    category: str = "bedroom"


@source("data_prep.sources.webdataset_tars:listing", look="data_prep.sources.webdataset_tars:tars", attributes=None)
class WebdatasetSource(Source):
    """Tars in webdataset form: an image beside .cls, .json, .txt. `path`: a tar, or a folder of tars."""

    kind: Literal["webdataset"]
    path: Path
    classes: tuple[str, ...] = ()  # names by number; (): the numbers that occur


@source("data_prep.sources.hub:listing", attributes=None)
class HubSource(Source):
    """A data set of the Hugging Face hub, or local parquet or image folders, through `datasets`, streamed once."""

    kind: Literal["hub"]
    name: str  # a repository such as "user/set", or a builder: parquet, imagefolder
    config: str | None = None
    data_files: dict[str, str] = {}  # split -> file pattern, for builders
    data_dir: Path | None = None
    revision: str | None = None  # a commit: without it the hub may change under a protocol's name
    splits: dict[str, str] = {"train": "train"}  # our split -> the hub's
    image_column: str = "image"
    label_column: str | None = None  # None: label, where there is one

    @property
    def needs_internet(self) -> bool:
        """Yes: a builder of local files is rare."""
        return True

    def official_splits(self) -> tuple[str, ...] | None:
        """The splits of split.rule=official."""
        return tuple(map(split_name, self.splits))
