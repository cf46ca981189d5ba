"""Every source, from real files where they are at hand, else from files in the official form."""

import gzip
import io
import itertools
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepared import config, folder_of_pictures, image_of, picture, prepare, rejected_of, split_of
from webdataset import WebDataset

from data_prep import listing
from data_prep.archives import read_bytes
from data_prep.items import Items
from pipeline.runtime.errors import Incomplete, UserError


def test_celeba_s_real_images_have_their_forty_attributes(shared: Path, tmp_path: Path) -> None:
    """Half-size images: crop numbers halve. Attribute rows are checked against the official text, by hand."""
    small = tmp_path / "small.tar"
    with tarfile.open(shared / "data" / "celeba7k_89x109.tar") as all_images, tarfile.open(small, "w") as archive:
        for member in [all_images.next() for _ in range(60)]:
            archive.addfile(member, all_images.extractfile(member))
    lines = (shared / "data" / "list_attr_celeba_7k.txt").read_text().splitlines()
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(["61", *lines[1:63]]))
    (tmp_path / "list_eval_partition.txt").write_text(
        "".join(f"{n:06d}.jpg {n % 3 if n > 9 else 0}\n" for n in range(1, 62))
    )
    overrides = [
        f"data.source.path={tmp_path}",
        "data.source.images=small.tar",
        "data.crop.size=89",
        "data.counts=null",
    ]
    cfg = config(tmp_path / "data", *overrides, data="celeba64_crop178_lanczos")
    prepare(cfg)
    train = split_of(cfg)
    assert len(train.manifest.attributes) == 40 and train.manifest.attributes[20] == "Male"
    official = [int(value == "1") for value in lines[2].split()[1:]]
    assert train.attributes[0].tolist() == official
    assert split_of(cfg, "valid").manifest.count + split_of(cfg, "test").manifest.count == 60 - train.manifest.count
    assert rejected_of(cfg)["000061.jpg"].kind == "label_without_image"
    with tarfile.open(small) as archive:
        first = Image.open(archive.extractfile("000001.jpg")).crop((0, 10, 89, 99))
    assert np.array_equal(image_of(train, 0), np.asarray(first.resize((64, 64), Image.Resampling.LANCZOS)))


def test_celeba_s_zip_and_folder_give_the_same_shards(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data" / "list_attr_celeba_7k.txt").read_text().splitlines()
    hashes = []
    for form, method in {"folder": None, "stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}.items():
        root = tmp_path / form
        (root / "img_align_celeba").mkdir(parents=True)
        (root / "list_attr_celeba.txt").write_text("\n".join(["9", *lines[1:11]]))
        with tarfile.open(shared / "data" / "celeba7k_89x109.tar") as archive:
            for member in [archive.next() for _ in range(9)]:
                (root / "img_align_celeba" / member.name).write_bytes(archive.extractfile(member).read())
        if method is not None:
            with zipfile.ZipFile(root / "img_align_celeba.zip", "w", method) as packed:
                for path in sorted((root / "img_align_celeba").iterdir()):
                    packed.write(path, f"img_align_celeba/{path.name}")
        overrides = [f"data.source.path={root}", "data.crop.size=89", "data.split.rule=all", "data.counts=null"]
        cfg = config(tmp_path / "data" / form, *overrides, data="celeba64_crop178_lanczos")
        prepare(cfg)
        hashes.append(split_of(cfg).manifest.sha256)
    assert len(set(hashes)) == 1


@pytest.fixture(scope="module")
def flowers(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official lists, and 30 of the images."""
    root = tmp_path_factory.mktemp("flowers")
    for name in ("imagelabels.mat", "setid.mat"):
        (root / name).symlink_to(shared / "data" / name)
    packed = shared / "data" / "102flowers_sample.tgz"
    with tarfile.open(packed) as whole, tarfile.open(root / "102flowers.tgz", "w:gz") as archive:
        for member in itertools.islice((member for member in whole if member.isfile()), 30):
            archive.addfile(member, whole.extractfile(member))
    return root


def test_the_real_flowers_have_their_labels_and_splits(flowers: Path, tmp_path: Path) -> None:
    from scipy.io import loadmat

    overrides = [f"data.source.path={flowers}", "data.counts=null"]
    cfg = config(tmp_path, *overrides, "data.max_rejected=1", data="flowers64_trainval")
    prepare(cfg)
    labels, sets = loadmat(flowers / "imagelabels.mat")["labels"][0], loadmat(flowers / "setid.mat")
    with tarfile.open(flowers / "102flowers.tgz") as archive:
        numbers = sorted(int(m.name[-9:-4]) for m in archive if m.isfile())
    in_train = [n for n in numbers if n in sets["trnid"] or n in sets["valid"]]
    train = split_of(cfg)
    assert train.index["label"].tolist() == [labels[n - 1] - 1 for n in in_train]
    assert split_of(cfg, "test").manifest.count == len(numbers) - len(in_train)
    missing = rejected_of(cfg)
    assert len(missing) == 8189 - len(numbers) and {why.kind for why in missing.values()} == {"label_without_image"}


def test_a_protocol_s_counts_are_checked(flowers: Path, tmp_path: Path) -> None:
    overrides = [f"data.source.path={flowers}", "data.max_rejected=1"]
    with pytest.raises(UserError, match=r"'train' of flowers64_all8189 has 30 images, the protocol says 8189"):
        prepare(config(tmp_path, *overrides, data="flowers64_all8189"))


def test_real_fashion_mnist_is_padded_to_32(shared: Path, tmp_path: Path) -> None:
    for name in ("images-idx3", "labels-idx1"):
        data = gzip.decompress((shared / "data" / "fashion" / f"t10k-{name}-ubyte.gz").read_bytes())
        head = 16 if name == "images-idx3" else 8
        count = 500
        size = 784 if head == 16 else 1
        short = data[:4] + struct.pack(">I", count) + data[8 : head + count * size]
        (tmp_path / f"train-{name}-ubyte").write_bytes(short)
    cfg = config(tmp_path / "data", f"data.source.path={tmp_path}", "data.counts=null", data="fashion32")
    prepare(cfg)
    train = split_of(cfg)
    pixels = np.frombuffer((tmp_path / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(500, 28, 28)
    labels = np.frombuffer((tmp_path / "train-labels-idx1-ubyte").read_bytes()[8:], np.uint8)
    assert train.index["label"].tolist() == labels.tolist() and train.manifest.classes[9] == "Ankle boot"
    assert np.array_equal(image_of(train, 123)[2:30, 2:30, 0], pixels[123])
    assert image_of(train, 123).sum(dtype=int) == pixels[123].sum(dtype=int)


@pytest.mark.parametrize("cut", ["header", "data"])
def test_a_cut_idx_file_is_named(tmp_path: Path, cut: str) -> None:
    images = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 28, 28) + bytes(2 * 784)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images[:10] if cut == "header" else images[:-1])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 2) + bytes(2))
    cfg = config(tmp_path / "data", f"data.source.path={tmp_path}", "data.counts=null", data="mnist32")
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte (is not an idx file|has 1583 bytes)"):
        prepare(cfg)


def cifar_batches(count: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return {name: (rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, 10, count)) for name in names}


def cifar_file(name: str, form: str) -> tuple[str, bytes]:
    data, labels = cifar_batches()[name]
    if form == "python":
        values = {b"batch_label": b"x", b"labels": labels.tolist(), b"data": data, b"filenames": [b"a.png"]}
        return f"cifar-10-batches-py/{name}", pickle.dumps(values, protocol=2)
    rows = np.concatenate([labels[:, None].astype(np.uint8), data], axis=1)
    return f"cifar-10-batches-bin/{name}.bin", rows.tobytes()


def test_cifar_s_python_and_binary_versions_packed_or_not_give_the_same_shards(tmp_path: Path) -> None:
    hashes = []
    for form in ("python", "binary", "python-folder", "binary-folder"):
        root = tmp_path / form
        root.mkdir()
        files = [cifar_file(name, form.split("-")[0]) for name in cifar_batches()]
        if "folder" in form:
            for name, content in files:
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_bytes(content)
        else:
            with tarfile.open(root / f"cifar-10-{form}.tar.gz", "w:gz") as archive:
                for name, content in files:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        cfg = config(tmp_path / "data" / form, f"data.source.path={root}", "data.counts=null", data="cifar10")
        prepare(cfg)
        hashes.append((split_of(cfg).manifest.sha256, split_of(cfg, "test").manifest.sha256))
    assert len(set(hashes)) == 1
    data, labels = cifar_batches()["data_batch_2"]
    assert np.array_equal(image_of(split_of(cfg), 23), data[3].reshape(3, 32, 32).transpose(1, 2, 0))
    assert split_of(cfg).index["label"][23] == labels[3] and split_of(cfg).manifest.classes[0] == "airplane"


def test_a_cifar_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (exec, ("raise SystemExit",))

    for name in cifar_batches():
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    cfg = config(tmp_path / "data", f"data.source.path={tmp_path}", "data.counts=null", data="cifar10")
    with pytest.raises(UserError, match=r"asks for .*exec, which no official batch does"):
        prepare(cfg)


def test_lsun_s_database_zip_of_it_and_folder_of_images_agree(shared: Path, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with tarfile.open(shared / "data" / "lsun_bedroom2500_64.tar") as archive:
        members = [archive.next() for _ in range(30)]
        images = {member.name[:-4]: archive.extractfile(member).read() for member in members if member.isfile()}
    database = tmp_path / "lmdb" / "bedroom_train_lmdb"
    database.mkdir(parents=True)
    with lmdb.open(str(database), map_size=2**24) as base, base.begin(write=True) as transaction:
        for key, content in images.items():
            transaction.put(key.encode(), content)
    for form in ("zip", "folder/bedroom"):
        (tmp_path / form).mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "zip" / "bedroom_train_lmdb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(database / "data.mdb", "bedroom_train_lmdb/data.mdb")
    for key, content in images.items():
        (tmp_path / "folder" / "bedroom" / f"{key}.jpg").write_bytes(content)
    pixels = []
    for form in ("lmdb", "zip", "folder"):
        overrides = [f"data.source.path={tmp_path / form}", "data.counts=null", "data.encoding=raw"]
        cfg = config(tmp_path / "data" / form, *overrides, data="lsun_bedroom64")
        prepare(cfg)
        split = split_of(cfg)
        assert split.manifest.count == len(images)
        pixels.append(np.stack([image_of(split, number) for number in range(split.manifest.count)]))
    assert np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])


def test_the_real_cifar_folders_are_classes_in_splits(shared: Path, tmp_path: Path) -> None:
    overrides = [f"data.source.path={shared / 'data' / 'cifar10_png_3000_600.tar'}", "data.image_size=32"]
    cfg = config(tmp_path, *overrides, "data.source.splits=true", "data.split.rule=official", "data.encoding=raw")
    prepare(cfg)
    train, test = split_of(cfg), split_of(cfg, "test")
    assert (train.manifest.count, test.manifest.count) == (3000, 600)
    assert train.manifest.classes[:2] == ["airplane", "automobile"] and sum(test.manifest.class_counts) == 600
    with tarfile.open(shared / "data" / "cifar10_png_3000_600.tar") as archive:
        first = next(member for member in archive if member.isfile() and member.name.startswith("train/"))
        assert np.array_equal(image_of(train, 0), np.asarray(Image.open(archive.extractfile(first))))


def test_a_table_in_the_real_flowers_tar_gives_label_and_split(shared: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.tar"
    with tarfile.open(shared / "data" / "flowers102_64.tar") as whole, tarfile.open(small, "w") as archive:
        table = whole.extractfile("labels.csv").read().decode()
        for line in table.splitlines()[1:41]:
            member = whole.getmember(line.split(",")[0])
            archive.addfile(member, whole.extractfile(member))
    lines = table.splitlines()[:41]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    overrides = [f"data.source.path={small}", f"data.source.table={tmp_path / 'labels.csv'}"]
    with pytest.raises(UserError, match="none of the columns label, class; it has file, label_1based, split"):
        prepare(config(tmp_path / "none", *overrides))
    overrides.append("data.source.label_column=label_1based")
    cfg = config(tmp_path / "data", *overrides, "data.split.rule=official")
    prepare(cfg)
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    there = {row["split"] for row in rows}
    found = {name: split_of(cfg, {"val": "valid"}.get(name, name)) for name in there}
    for name, split in found.items():
        wanted = [row["label_1based"] for row in rows if row["split"] == name]
        assert sorted(split.manifest.classes[label] for label in split.index["label"]) == sorted(wanted)


def test_webdataset_tars_give_labels_captions_and_our_own_shards_back(tmp_path: Path) -> None:
    cfg = config(
        tmp_path / "one", f"data.source.path={folder_of_pictures(tmp_path / 'images', 12, classes=3)}",
        "data.image_size=16", "data.split.valid=0", "data.encoding=png", "data.images_per_shard=5",
    )  # fmt: skip
    shards = prepare(cfg) / "train"
    names = "data.source.classes=[class0,class1,class2]"
    overrides = [f"data.source.path={shards}", "data.image_size=16", "data.split.valid=0", names]
    again = config(tmp_path / "two", *overrides, data="webdataset")
    prepare(again)
    one, two = split_of(cfg), split_of(again)
    assert two.manifest.classes == one.manifest.classes and two.manifest.class_counts == [4, 4, 4]
    assert all(np.array_equal(image_of(one, k), image_of(two, k)) for k in range(12))
    with tarfile.open(tmp_path / "captions.tar", "w") as archive:
        for name, content in {"a/7.png": None, "a/7.cls": b"2", "a/7.txt": b"a red square"}.items():
            buffer = io.BytesIO()
            picture(7).save(buffer, "PNG")
            content = content or buffer.getvalue()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    overrides = [f"data.source.path={tmp_path / 'captions.tar'}", "data.image_size=16", "data.split.valid=0"]
    cfg = config(tmp_path / "three", *overrides, data="webdataset")
    prepare(cfg)
    with tarfile.open(split_of(cfg).shard_path(0)) as archive:
        assert b'"caption":"a red square","label":2' in archive.extractfile("00000000.json").read()


@pytest.mark.parametrize("form", ["parquet", "imagefolder"])
def test_the_hub_s_forms_give_the_same_images(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    root = folder_of_pictures(tmp_path / "images", 10)
    if form == "parquet":
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["u", "v"])})
        files = sorted(root.rglob("*.png"))
        rows = {"image": [str(file) for file in files], "label": [int(file.parent.name[-1]) for file in files]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
        overrides = ["data.source.name=parquet", f"++data.source.data_files.train={tmp_path / 'rows.parquet'}"]
    else:
        overrides = ["data.source.name=imagefolder", f"data.source.data_dir={root}"]
    cfg = config(tmp_path / "data", *overrides, "data.image_size=16", "data.split.valid=0", data="hub")
    prepare(cfg)
    train = split_of(cfg)
    assert train.manifest.classes == (["u", "v"] if form == "parquet" else ["class0", "class1"])
    assert train.manifest.class_counts == [5, 5]
    plain = config(tmp_path / "plain", f"data.source.path={root}", "data.image_size=16", "data.split.valid=0")
    prepare(plain)
    assert all(np.array_equal(image_of(train, k), image_of(split_of(plain), k)) for k in range(10))


def test_hub_labels_that_are_no_classes_are_refused_with_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    files = [str(file) for file in sorted(folder_of_pictures(tmp_path / "images", 3).rglob("*.png"))]
    features = {"image": datasets.Image()}
    for name, labels, said in (
        ("words", ["a", "b", "c"], r"found the label 'a' in row train/0000000, expected a number"),
        ("ids", [0, 1, 98765], r"labels up to 98765, which makes 98766 classes, but 3 of them alone have images"),
    ):
        kind = datasets.Value("string" if name == "words" else "int64")
        rows = datasets.Dataset.from_dict(
            {"image": files, "label": labels}, datasets.Features({**features, "label": kind})
        )
        rows.to_parquet(tmp_path / f"{name}.parquet")
        overrides = ["data.source.name=parquet", f"++data.source.data_files.train={tmp_path / f'{name}.parquet'}"]
        with pytest.raises(UserError, match=said):
            prepare(config(tmp_path / name, *overrides, "data.image_size=16", data="hub"))


def test_a_column_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = folder_of_pictures(tmp_path / "images", 4)
    overrides = ["data.source.name=imagefolder", f"data.source.data_dir={root}", "data.source.image_column=imge"]
    with pytest.raises(UserError, match=r"no 'imge' in split 'train'.*Did you mean 'image'"):
        prepare(config(tmp_path / "data", *overrides, data="hub"))


def test_bad_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source\.path: '/nowhere' does not exist.*Give the folder"):
        prepare(config(tmp_path, "data.source.path=/nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no images. Expected files ending in .png"):
        prepare(config(tmp_path, f"data.source.path={tmp_path / 'empty'}"))
    folder_of_pictures(tmp_path / "images", 4)
    picture(9).save(tmp_path / "images" / "loose.png")
    with pytest.raises(UserError, match=r"labels=folders, but 'loose\.png' lies in no folder"):
        prepare(config(tmp_path, f"data.source.path={tmp_path / 'images'}", "data.source.labels=folders"))
    with pytest.raises(UserError, match=r"no CIFAR-10 archive or folder of batches in .*Expected cifar-10-binary"):
        prepare(config(tmp_path, f"data.source.path={tmp_path / 'images'}", data="cifar10"))


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for number in range(4):
        picture(number).save(root / f"{number}.png")
    cfg = config(tmp_path / "data", f"data.source.path={root}", "data.image_size=16", "data.split.valid=0")
    prepare(cfg)
    assert split_of(cfg).manifest.classes == [] and set(split_of(cfg).index["label"]) == {-1}


def tar_of_pictures(path: Path, names: tuple[str, ...]) -> bytes:
    with tarfile.open(path, "w") as archive:
        for name in names:
            buffer = io.BytesIO()
            picture(len(name)).save(buffer, "PNG")
            content = buffer.getvalue() if name.endswith("png") else b"1"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


@pytest.mark.parametrize("data", ["webdataset", "folder"])
def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path: Path, data: str) -> None:
    whole = tar_of_pictures(tmp_path / "a.tar", ("a.png", "a.cls", "b.png", "b.cls"))
    with tarfile.open(tmp_path / "a.tar") as archive:
        end = max(member.offset_data + member.size for member in archive)
    end += -end % 512
    overrides = ["data.image_size=16", "data.split.valid=0", f"data.source.path={tmp_path / 'a.tar'}"]
    cuts = [*range(512, end + 512, 512), end + 511, *range(700, end, 777)]
    for cut in [*cuts, "damaged"]:
        damaged = bytearray(whole)
        if cut == "damaged":
            header = whole.index(b"b.png")
            damaged[header + 3 : header + 5] = b"??"  # its checksum is wrong now
        (tmp_path / "a.tar").write_bytes(damaged if cut == "damaged" else whole[:cut])
        with pytest.raises(Incomplete, match=r"a\.tar is (a truncated or damaged tar|not a readable tar)"):
            listing.run(config(tmp_path / str(cut), *overrides, data=data))
    (tmp_path / "a.tar").write_bytes(whole[: end + 512])  # one block of the end mark is enough
    assert listing.run(config(tmp_path / "whole", *overrides, data=data))["items"] == 2


def test_samples_of_a_tar_are_those_that_webdataset_reads(tmp_path: Path) -> None:
    names = ("./._a.png", "./a.png", "./a.CLS", "README", "v1.0/b.png", "v1.0/b.cls", "c.seg.png", "c.png", "d.txt")
    tar_of_pictures(tmp_path / "a.tar", names)
    streamed = [sample for sample in WebDataset(str(tmp_path / "a.tar"), shardshuffle=False) if "png" in sample]
    overrides = ["data.image_size=16", "data.split.valid=0", f"data.source.path={tmp_path / 'a.tar'}"]
    cfg = config(tmp_path / "data", *overrides, data="webdataset")
    listing.run(cfg)
    items = Items(listing.source_directory(cfg))
    assert [item.key for item in items] == [sample["__key__"].removeprefix("./") for sample in streamed]
    assert [read_bytes(item.at, items.root) for item in items] == [sample["png"] for sample in streamed]
    assert [item.label for item in items] == [1 if "cls" in sample else None for sample in streamed]
    tar_of_pictures(tmp_path / "a.tar", ("a.png", "a.PNG"))
    with pytest.raises(UserError, match=r"a\.tar: a\.PNG: duplicate file name in tar file png"):
        listing.run(config(tmp_path / "twice", *overrides, data="webdataset"))
