"""What a data protocol says of its classes and attributes before any image has been read. None: not known yet."""

from pipeline.config.schema_data import DataConfig
from pipeline.config.schema_sources import FolderSource, GlyphSource, HubSource, IdxSource

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
_OFFICIAL = {
    "celeba": ("train", "valid", "test"),
    "flowers102": ("train", "valid", "test"),
    "cifar10": ("train", "test"),
    "idx": ("train", "test"),
}
COUNTS = {"cifar10": 10, "flowers102": 102, "celeba": 0, "lsun": 0}


def split_name(name: str) -> str:
    """Our name of a split, whatever its case; a name that is not known stays as it is."""
    lower = name.strip().lower()
    return lower if lower in SPLITS else ALIASES.get(lower, name)


def class_count(data: DataConfig) -> int | None:
    """How many classes the data will have."""
    source = data.source
    if data.split.min_per_class:
        return None
    if isinstance(source, GlyphSource):
        return len(source.alphabet)
    if isinstance(source, IdxSource):
        return len(source.classes)
    return COUNTS.get(source.kind)


def attribute_names(data: DataConfig) -> tuple[str, ...] | None:
    """Which attributes the data will have."""
    source = data.source
    if source.kind == "celeba":
        return tuple(CELEBA.split())
    if isinstance(source, FolderSource):
        return source.attribute_columns
    return None if source.kind in ("webdataset", "hub") else ()


def split_names(data: DataConfig) -> tuple[str, ...] | None:
    """Which splits the data will have."""
    rule, official = data.split, _OFFICIAL.get(data.source.kind)
    if isinstance(data.source, HubSource):
        official = tuple(map(split_name, data.source.splits))
    shares = {"train": 1.0, "valid": rule.valid, "test": rule.test}
    by_hash = tuple(name for name, share in shares.items() if share)
    made = {"all": ("train",), "hash": by_hash, "official": official}[rule.rule]
    if not rule.merge:
        return made
    return tuple(name for name, parts in rule.merge.items() if made is None or any(part in made for part in parts))
