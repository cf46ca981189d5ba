"""Settings of the sources of images: one class a source family.

`path` of a known data set is the folder that holds its official files; None: they are downloaded by `fetch` into
`<data_dir>/downloads/<kind>`, from `urls`. Names of files are looked for in that folder, official ones first.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Settings


class Download(Settings):
    """One file of a data set. `checksum`: "sha256:..." or "md5:..." of the whole file, where it is published."""

    url: str = Field(pattern=r"^https?://")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    checksum: str | None = Field(None, pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")


class GlyphSource(Settings):
    """Letters rendered from fonts, centred by their ink box. Labels are letters; each sample's json has the font."""

    kind: Literal["glyphs"]
    fonts: Path | None = None  # a folder or tar of fonts; None: the ones that matplotlib ships
    choose: tuple[str, ...] = ()  # names of font files, without their ending, that are used; (): every usable one
    alphabet: str = Field("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_length=1)
    scales: tuple[float, ...] = (0.6, 0.75, 0.9)  # longer side of the ink box as a share of the image
    ink: int = Field(255, ge=0, le=255)
    paper: int = Field(0, ge=0, le=255)


class FolderSource(Settings):
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


class CelebaSource(Settings):
    """CelebA, aligned: the official zip, or its images in a folder or tar; 40 attributes; the official partition."""

    kind: Literal["celeba"]
    path: Path | None = None
    images: str | None = None  # None: img_align_celeba.zip, or the folder img_align_celeba
    attributes: str | None = None  # None: list_attr_celeba.txt, or list_attr_celeba.csv
    partition: str | None = None  # None: list_eval_partition.txt or .csv, where it is there
    urls: tuple[Download, ...] = ()


class FlowersSource(Settings):
    """Oxford Flowers 102: 102flowers.tgz (or jpg/), imagelabels.mat, setid.mat."""

    kind: Literal["flowers102"]
    path: Path | None = None
    images: str | None = None
    urls: tuple[Download, ...] = ()


class CifarSource(Settings):
    """CIFAR-10: the archive or folder of the python or of the binary version; both give the same shards."""

    kind: Literal["cifar10"]
    path: Path | None = None
    urls: tuple[Download, ...] = ()


class IdxSource(Settings):
    """MNIST and what looks like it: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gz or not. t10k is test."""

    kind: Literal["idx"]
    path: Path | None = None
    dataset: str = "mnist"  # names the folder of downloads
    classes: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    urls: tuple[Download, ...] = ()


class LsunSource(Settings):
    """One LSUN category: the lmdb export (folder or zip), or its images in a folder, zip or tar."""

    kind: Literal["lsun"]
    path: Path | None = None
    category: str = "bedroom"
    urls: tuple[Download, ...] = ()


class WebdatasetSource(Settings):
    """Tars in webdataset form: an image beside .cls, .json, .txt. `path`: a tar, or a folder of tars."""

    kind: Literal["webdataset"]
    path: Path
    classes: tuple[str, ...] = ()  # names by number; (): the numbers that occur


class HubSource(Settings):
    """A data set of the Hugging Face hub, or local parquet or image folders, through `datasets`, streamed once."""

    kind: Literal["hub"]
    name: str  # a repository such as "user/set", or a builder: parquet, imagefolder
    config: str | None = None
    data_files: dict[str, str] = {}  # split -> file pattern, for builders
    data_dir: Path | None = None
    revision: str | None = None  # a commit: without it the hub may change under a protocol's name
    splits: dict[str, str] = {"train": "train"}  # ours -> theirs
    image_column: str = "image"
    label_column: str | None = None  # None: label, where there is one


Source = Annotated[
    GlyphSource
    | FolderSource
    | CelebaSource
    | FlowersSource
    | CifarSource
    | IdxSource
    | LsunSource
    | WebdatasetSource
    | HubSource,
    Field(discriminator="kind"),
]

KNOWN = ("celeba", "flowers102", "cifar10", "idx", "lsun")  # the same images wherever they lie
