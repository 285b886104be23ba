"""Segmenting image files: pipeline, planned files, options."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import inference_base_model
from helpers import fails_with, full_disk, in_thread, make_quadrants
from lib import cli
from lib.files.atomic import atomic_path
from lib.inference.images import ImageJob, segment_files
from lib.inference.outputs import OutputFiles
from lib.inference.segmenter import Segmenter
from lib.network.inputs import InputScales
from lib.runtime.errors import RunError, TooLargeError
from lib.runtime.streams import SideStream
from model import CompositeSSNModel, SSNModel

SIZES = [(60, 92), (60, 92), (60, 92), (48, 92), (60, 92)]


@pytest.fixture
def photos(tmp_path):
    """Make a folder with five images of two sizes, two of them in subfolders, and files to ignore."""
    folder = tmp_path / "photos"
    (folder / "trip" / "day 1").mkdir(parents=True)
    (folder / ".cache").mkdir()
    names = ["a.png", "b.jpg", "c.PNG", "trip/d.png", "trip/day 1/e.png"]
    for seed, (name, size) in enumerate(zip(names, SIZES, strict=True)):
        Image.fromarray(make_quadrants(*size, seed=seed)[0]).save(folder / name)
    shutil.copy(folder / "a.png", folder / ".cache" / "hidden.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def segment(*argv):
    """Run the script without a network, because that is fast."""
    return inference_base_model.main(["--base_model_weights=none", "--nspix=24", "--device=cpu", *argv])


def segment_levels(argv):
    return inference_base_model.main(["--base_model_weights=none", "--device=cpu", *argv])


def files_below(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_folder_keeps_its_structure(photos, in_tmp_path, caplog):
    caplog.set_level("INFO")
    summary = segment(
        "--image",
        str(photos),
        "--out=overlays",
        "--save_labels=labels/x_{name}.tif",
        "--save_outlines=outlines",
    )
    assert (summary.n_done, summary.n_skipped, summary.failures) == (5, 0, [])
    names = ["a", "b", "c", "trip/d", "trip/day 1/e"]
    assert files_below(in_tmp_path / "overlays") == sorted(f"{name}.png" for name in names)
    assert files_below(in_tmp_path / "labels") == sorted(f"x_{name}.tif" for name in names)
    assert files_below(in_tmp_path / "outlines") == sorted(f"{name}.geojson" for name in names)
    assert "5 images segmented, 0 skipped, 0 failed" in caplog.text


def test_annotations_of_a_folder(photos, in_tmp_path):
    segment("--image=photos", "--save_annotations=a", "--annotation_format=labelme")
    names = ["a.json", "b.json", "c.json", "trip/d.json", "trip/day 1/e.json"]
    assert files_below(in_tmp_path / "a") == names
    content = json.loads((in_tmp_path / "a/trip/d.json").read_text())
    assert content["imagePath"] == "../../photos/trip/d.png"
    assert (len(content["shapes"]), content["imageWidth"]) == (24, 92)
    argv = ["--save_annotations=z", "--annotation_format=cvat", "--enforce_connectivity=False"]
    segment("--image=photos", *argv)
    assert files_below(in_tmp_path / "z") == [name.replace("json", "zip") for name in names]


def test_outlines_simplified_by_the_script(photos, in_tmp_path):
    lengths = []
    for pixels in ("0", "1.5"):
        segment("--image=photos/a.png", "--save_outlines=o.geojson", f"--simplify={pixels}")
        features = json.loads(Path("o.geojson").read_text())["features"]
        lengths.append(sum(len(ring) for each in features for ring in each["geometry"]["coordinates"]))
    assert lengths[1] < lengths[0]


KINDS = {
    "ppm": "PPM",
    "pgm": "PPM",
    "gif": "GIF",
    "jfif": "JPEG",
    "jp2": "JPEG2000",
    "tga": "TGA",
    "mpo": "MPO",
    "webp": "WEBP",
    "odd": "PNG",
}


def test_folder_of_all_formats(in_tmp_path, caplog):
    caplog.set_level("INFO")
    (in_tmp_path / "photos" / ".ipynb_checkpoints").mkdir(parents=True)
    image_rgb = make_quadrants()[0]
    for suffix, kind in KINDS.items():
        image = Image.fromarray(image_rgb[..., 0] if suffix == "pgm" else image_rgb)
        image.save(in_tmp_path / "photos" / f"a_{suffix}.{suffix}", kind)
    shutil.copy("photos/a_odd.odd", "photos/no_suffix")
    for hidden in (".a.png", ".ipynb_checkpoints/a.png", "Thumbs.db", "a_ppm.ppm~"):
        shutil.copy("photos/a_odd.odd", in_tmp_path / "photos" / hidden)
    for name in ("notes.txt", "more.TXT", "camera.cr2", "README"):
        Path("photos", name).write_text("no image")
    for _ in range(2):  # outputs of the first run are no images that are left out by the second
        caplog.clear()
        argv = ["--image=photos", "--out=photos/overlays", "--save_labels=photos/{name}_l.npy"]
        assert segment(*argv, "--save_outlines=photos/{name}.svg").n_done == len(KINDS) + 1
        assert "4 files that are no readable images are left out: .cr2, .txt, readme" in caplog.text
    overlays = files_below(in_tmp_path / "photos" / "overlays")
    assert overlays == sorted([f"a_{suffix}.png" for suffix in KINDS] + ["no_suffix.png"])


ODD_NAMES = {
    "255 bytes": "x" * 251 + ".png",
    "255 bytes of two each": "\u00e4" * 125 + "x.png",
    "not UTF-8": os.fsdecode(b"caf\xe9.png"),
    "newline": "a\nb.png",
    "colon": "12:30.png",
    "dash": "-a.png",
    "braces": "{name}.png",
    "only a suffix": "a.b c.png",
}


@pytest.mark.parametrize("kind", ODD_NAMES)
def test_odd_names(kind, in_tmp_path):
    name = ODD_NAMES[kind]
    stem = name.removesuffix(".png")
    folder = Path(os.fsdecode(b"f\xe9:\n"))
    folder.mkdir()
    Image.fromarray(make_quadrants()[0]).save(folder / name)
    shutil.copy(folder / name, name)
    argv = ["--image", str(folder), "--out=o", "--save_labels=o/{name}.h5"]
    assert segment(*argv, "--save_outlines", str(folder / "{name}.svg")).n_done == 1
    assert files_below(in_tmp_path / "o") == sorted([f"{stem}.png", f"{stem}.h5"])
    assert files_below(in_tmp_path / folder) == sorted([f"{stem}.png", f"{stem}.svg"])
    assert segment(*argv, "--save_annotations=a/{name}.zip").n_done == 1
    segment(f"--image={name}", "--out=one/", "--save_labels=one/", "--save_annotations=a.json")
    assert json.loads(Path("a.json").read_text())["images"][0]["file_name"] == name
    assert files_below(in_tmp_path / "one") == sorted([f"{stem}.png", f"{stem}.npy"])
    segment(f"--image={name}", f"--out={folder / ('y' + name[1:])}")
    assert (folder / f"y{name[1:]}").is_file()


def test_output_whose_name_is_too_long_fails_alone(photos, in_tmp_path, caplog):
    long_name = "x" * 251 + ".png"
    shutil.copy(photos / "a.png", photos / long_name)
    argv = ["--image=photos", "--out=o", "--save_outlines=o", "--skip_existing"]
    with pytest.raises(RunError, match="1 of the images failed"):
        segment(*argv)
    assert len(files_below(in_tmp_path / "o")) == 10
    assert f"{'x' * 251}.geojson (File name too long)" in caplog.text


@pytest.mark.slow
def test_log_of_a_name_that_is_not_utf_8(photos, in_tmp_path):
    (photos / "a.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    argv = ["--base_model_weights=none", "--nspix=24", "--image", photos / os.fsdecode(b"caf\xe9.png")]
    script = Path(inference_base_model.__file__)
    run = subprocess.run([sys.executable, script, *argv], capture_output=True, text=True, check=True)
    assert "photos/caf\\udce9.png: 24 superpixels requested" in run.stdout
    assert run.stderr == ""


def test_errors_on_odd_names_are_one_whole_line(in_tmp_path, capsys):
    name = os.fsdecode(b"a\n\xe9.png")
    Path(name).write_text("no image")
    argv = ["--base_model_weights=none", f"--image={name}"]
    assert "error: a\\n\\udce9.png is not a readable image" in fails_with(
        inference_base_model.main, argv, capsys
    )


def test_files_and_patterns(photos, in_tmp_path):
    segment("--image", str(photos / "**" / "?.png"), "--out=by_pattern")
    assert files_below(in_tmp_path / "by_pattern") == ["a.png", "trip/d.png", "trip/day 1/e.png"]
    segment("--image", str(photos / "a.png"), str(photos / "trip"), "--out={name}_o.png")
    assert (in_tmp_path / "a_o.png").is_file()
    assert (in_tmp_path / "day 1" / "e_o.png").is_file()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_equal_one_by_one(photos, tmp_path, batch_size):
    segmenter = Segmenter(SSNModel(4), InputScales(0.26, 2.5))
    images = sorted(photos.rglob("?.*"))
    jobs = [
        ImageJob(image, OutputFiles(tmp_path / f"{image.stem}.png", labels=tmp_path / f"{image.stem}.npy"))
        for image in images
    ]
    # Outside the main thread, as in a web server.
    assert in_thread(segment_files, segmenter, jobs, 24, batch_size=batch_size).n_done == 5
    for job in jobs:
        expected = segmenter(np.asarray(Image.open(job.image)), 24).labels
        np.testing.assert_array_equal(np.load(job.files.labels), expected)


def test_batches_hold_images_of_one_size(photos, tmp_path, monkeypatch):
    sizes = []
    original = Segmenter.cluster

    def cluster(self, images, *args, **kwargs):
        sizes.append((len(images), images[0].image_rgb.shape[0]))
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr(Segmenter, "cluster", cluster)
    segment("--image", str(photos), f"--out={tmp_path / 'o'}", "--batchsize=2")
    assert sizes == [(2, 60), (1, 60), (1, 48), (1, 60)]


def test_bad_files_do_not_stop_the_others(photos, in_tmp_path, capsys):
    (photos / "aa.jpg").write_bytes(b"no image")
    Image.fromarray(make_quadrants(4, 5)[0]).save(photos / "small.png")
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: segment("--image", str(photos), "--out=overlays"))
    assert caught.value.code == 1
    assert len(files_below(in_tmp_path / "overlays")) == 5
    assert "2 of the images" in capsys.readouterr().err


def test_failures_name_the_image(photos, in_tmp_path, caplog):
    (photos / "aa.jpg").write_bytes(b"no image")
    Image.fromarray(make_quadrants(4, 5)[0]).save(photos / "small.png")
    with pytest.raises(RunError):
        segment("--image", "photos", "--out=overlays")
    assert "aa.jpg" in caplog.text
    assert re.search("`n_spixels` 24 .*20 .*photos/small.png", caplog.text)


def test_full_disk_leaves_no_half_written_file(photos, in_tmp_path, monkeypatch):
    original = np.save

    def fail_for_one(file, labels):
        file.write(b"some bytes")
        if Path(file.name).name.startswith(".b."):
            raise OSError(28, "No space left on device")
        file.seek(0)
        original(file, labels)

    monkeypatch.setattr(np, "save", fail_for_one)
    with pytest.raises(RunError, match="1 of the images"):
        segment("--image", str(photos), "--out=overlays", "--save_labels=labels")
    written = files_below(in_tmp_path / "overlays") + files_below(in_tmp_path / "labels")
    assert len(written) == 8
    assert not any("b." in name for name in written)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 12"),
    ],
)
def test_batch_that_does_not_fit_the_memory_is_split(photos, in_tmp_path, monkeypatch, error):
    original = Segmenter.cluster

    def cluster(self, images, *args, **kwargs):
        if len(images) > 1 or "e.png" in images[0].name:
            raise error
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr(Segmenter, "cluster", cluster)
    with pytest.raises(RunError, match="1 of the images"):
        segment("--image", str(photos), "--out=overlays", "--batchsize=3")
    assert len(files_below(in_tmp_path / "overlays")) == 4


def test_batches_are_halved_until_they_fit_the_memory(photos, in_tmp_path, monkeypatch, caplog):
    for idx in range(8):
        Image.fromarray(make_quadrants(seed=idx)[0]).save(photos / f"same{idx}.png")
    sizes = []
    original = Segmenter.cluster

    def cluster(self, images, *args, **kwargs):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr(Segmenter, "cluster", cluster)
    names = [f"photos/same{idx}.png" for idx in range(8)]
    assert segment("--image", *names, "--out=overlays", "--batchsize=4").n_done == 8
    assert sizes == [4, 2, 2, 2, 2]
    assert caplog.messages.count("a batch of 4 images does not fit the memory; going on with 2") == 1


@pytest.fixture
def merged_beside(monkeypatch):
    """Merge in a second thread on a CPU too."""
    monkeypatch.setattr("lib.inference.images.count_merged_beside", lambda device: 1)


@pytest.mark.parametrize(
    "argv", [[], ["--save_features={name}", "--batchsize=2"], ["--exact_nspix", "--fine_factor=1"]]
)
def test_merges_beside_a_gpu_change_no_file(photos, in_tmp_path, request, base_weights, device, argv):
    argv = [f"--base_model_weights={base_weights}", "--save_labels={name}", *argv, f"--device={device}"]
    contents = []
    for name in ("one_thread", "two_threads"):
        if name == "two_threads":
            request.getfixturevalue("merged_beside")
        segment("--image=photos", f"--out={name}", *(each.format(name=name) for each in argv))
        files = files_below(in_tmp_path / name)
        contents.append({each: (in_tmp_path / name / each).read_bytes() for each in files})
    assert len(contents[0]) >= 10
    assert contents[0] == contents[1]


@pytest.mark.usefixtures("merged_beside")
def test_next_batch_is_clustered_while_one_is_merged(photos, in_tmp_path, monkeypatch):
    steps, is_second_clustered = [], threading.Event()
    cluster, finish = Segmenter.cluster, Segmenter.finish

    def record_cluster(self, images, *args, **options):
        clustered = cluster(self, images, *args, **options)
        steps.append(f"cluster {Path(images[0].name).name}")
        if len(steps) == 2:
            is_second_clustered.set()
        return clustered

    def record_finish(self, clustered):
        assert is_second_clustered.wait(timeout=30)
        steps.append(f"finish {Path(clustered.images[0].name).name}")
        return finish(self, clustered)

    monkeypatch.setattr(Segmenter, "cluster", record_cluster)
    monkeypatch.setattr(Segmenter, "finish", record_finish)
    assert segment("--image", "photos/a.png", "photos/b.jpg", "photos/c.PNG", "--out=o").n_done == 3
    assert steps[:2] == ["cluster a.png", "cluster b.jpg"]
    assert steps.index("finish a.png") < steps.index("cluster c.PNG")  # no more than two are in memory
    assert len(steps) == 6


@pytest.mark.usefixtures("merged_beside")
@pytest.mark.parametrize("step", ["cluster", "finish"])
@pytest.mark.parametrize("n_failures", [1, 2, 100])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, TooLargeError])
def test_batch_that_does_not_fit_beside_another_is_tried_alone(
    photos, in_tmp_path, monkeypatch, step, n_failures, error
):
    """In the second attempt it is alone; in further ones it is split."""
    original, failed = getattr(Segmenter, step), []

    def fail_for_c(self, first, *args, **options):
        images = first.images if step == "finish" else first
        if any("c.PNG" in image.name for image in images) and len(failed) < n_failures:
            failed.append(len(images))
            raise error("does not fit")
        return original(self, first, *args, **options)

    monkeypatch.setattr(Segmenter, step, fail_for_c)
    # The first image is of another size, and a batch of its own; c is in the second batch.
    images = ["photos/trip/d.png", "photos/b.jpg", "photos/c.PNG", "photos/a.png"]
    argv = ["--image", *images, "--out=o", "--batchsize=2"]
    if n_failures == 100:
        with pytest.raises(RunError, match="1 of the images"):
            segment(*argv)
    else:
        assert segment(*argv).n_done == 4
    n_attempts = {1: 1, 2: 2, 100: 3}[n_failures]
    assert failed == [2, 2, 1][:n_attempts]


@pytest.mark.usefixtures("merged_beside")
def test_error_in_the_code_of_a_merge_ends_the_run(photos, in_tmp_path, monkeypatch):
    def fail(self, clustered):
        raise ZeroDivisionError

    monkeypatch.setattr(Segmenter, "finish", fail)
    with pytest.raises(ZeroDivisionError):
        segment("--image=photos", "--out=o")


def test_side_stream_continues_the_work_of_the_first_thread(device):
    stream = SideStream(device)
    values = torch.ones(1000, 1000, device=device)
    for _ in range(10):
        values = values @ values / 1000
    event = stream.mark()

    def read():
        with stream.after(event, [values]):
            return (values + 1).cpu()

    assert in_thread(read).eq(2).all()


def test_summary_tells_how_long_files_were_waited_for(photos, in_tmp_path, monkeypatch):
    original = ImageJob.read

    def read(self, segmenter):
        time.sleep(0.3)
        return original(self, segmenter)

    monkeypatch.setattr(ImageJob, "read", read)
    summary = segment("--image=photos/a.png", "--out=o.png")
    assert 0.3 <= summary.seconds_waited <= summary.seconds


def test_leftovers_of_a_killed_run_are_removed_below_the_folder(photos, in_tmp_path):
    segment("--image=photos", "--out=overlays")
    (folder,) = {path.parent for path in (in_tmp_path / "overlays").rglob("e*.png")}
    expected = files_below(in_tmp_path / "overlays")
    with atomic_path(folder / "f.png") as temporary:
        pass
    (folder / "f.png").unlink()
    temporary.write_text("half a picture")
    segment("--image=photos", "--out=overlays", "--skip_existing")
    assert files_below(in_tmp_path / "overlays") == expected


def test_file_name_with_pattern_characters(photos, in_tmp_path):
    (photos / "a.png").rename(in_tmp_path / "photo[1].png")
    segment("--image=photo[1].png", "--out=o.png")
    assert (in_tmp_path / "o.png").is_file()


def test_image_given_twice_is_segmented_once(photos, in_tmp_path):
    assert segment("--image", "photos", "photos/a.png", "photos", "--out={name}_o.png").n_done == 5


def test_mask_folder_below_the_images_is_skipped(photos, in_tmp_path):
    write_masks(photos, in_tmp_path / "masks")
    (in_tmp_path / "masks").rename(photos / "masks")
    assert segment("--image=photos", "--mask=photos/masks", "--out=photos/overlays").n_done == 5


def test_mask_files_next_to_the_images_are_skipped(photos, in_tmp_path):
    write_masks(photos, in_tmp_path / "masks")
    for mask in (in_tmp_path / "masks").rglob("*.png"):
        folder = photos / mask.relative_to(in_tmp_path / "masks").parent
        mask.rename(folder / f"{mask.stem}_mask.png")
    argv = ["--image=photos", "--mask=photos/{name}_mask.png", "--save_labels=labels"]
    assert segment(*argv).n_done == 5
    assert (np.load(in_tmp_path / "labels" / "a.npy") == -1).mean() == 0.5


@pytest.mark.parametrize("name", ["read", "write"])
def test_image_that_does_not_fit_the_memory_does_not_stop_the_others(photos, in_tmp_path, monkeypatch, name):
    original = getattr(ImageJob, name)

    def fail(self, *args):
        if "a.png" in self.image.name:
            torch.empty(2**60, dtype=torch.uint8)  # raises the error of PyTorch's allocator
        return original(self, *args)

    monkeypatch.setattr(ImageJob, name, fail)
    with pytest.raises(RunError, match="1 of the images"):
        segment("--image=photos", "--out=overlays")
    assert len(files_below(in_tmp_path / "overlays")) == 4


def test_full_disk_keeps_finished_files_only(in_tmp_path):
    (in_tmp_path / "photos").mkdir()
    for name, size in (("large", 400), ("small", 40)):
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(in_tmp_path / "photos" / f"{name}.png")
    with full_disk(100_000), pytest.raises(RunError, match="1 of the images"):
        segment("--image=photos", "--out=o", "--save_labels=o")
    assert files_below(in_tmp_path / "o") == ["small.npy", "small.png"]


def test_large_images_are_read_one_at_a_time(photos, in_tmp_path, monkeypatch):
    def read(self, segmenter):
        n_held.append(sum(started) - sum(finished))
        started.append(1)
        return original(self, segmenter)

    def cluster(self, images, *args, **kwargs):
        finished.append(len(images))
        return original_cluster(self, images, *args, **kwargs)

    started, finished, n_held = [], [], []
    original, original_cluster = ImageJob.read, Segmenter.cluster
    monkeypatch.setattr(ImageJob, "read", read)
    monkeypatch.setattr(Segmenter, "cluster", cluster)
    monkeypatch.setattr("lib.inference.images._MAX_WAITING_PIXELS", 60 * 92)
    segment("--image=photos", "--out=o")
    assert max(n_held) <= 2  # one in the network, one read ahead


def test_single_image_into_a_folder_and_skipped(photos, in_tmp_path):
    argv = ["--image=photos/a.png", "--out=o/{name}/overlay.png", "--skip_existing"]
    assert segment(*argv).n_done == 1
    assert segment(*argv).n_skipped == 1
    assert segment(*argv[:-1]).n_done == 1
    assert files_below(in_tmp_path / "o") == ["a/overlay.png"]


def test_value_range_of_a_folder(in_tmp_path, capsys):
    (in_tmp_path / "photos").mkdir()
    for name, top in (("bright", 4000), ("dim", 500)):
        values = np.linspace(0, top, 60 * 92).reshape(60, 92).astype(np.uint16)
        Image.fromarray(values).save(in_tmp_path / "photos" / f"{name}.png")
    argv = ["--image=photos", "--overlay=mean_colors"]
    brightest = {}
    for key, more in {"own": [], "fixed": ["--value_range", "0", "4095"]}.items():
        segment(*argv, f"--out={key}", *more)
        brightest[key] = np.asarray(Image.open(in_tmp_path / key / "dim.png")).max()
    assert brightest["own"] > 110
    assert 20 < brightest["fixed"] < 35
    argv = ["--base_model_weights=none", *argv, "--value_range", "9", "9"]
    assert "--value_range 9 9: " in fails_with(inference_base_model.main, argv, capsys)


def test_bands_of_a_folder(in_tmp_path, capsys):
    image_rgb = make_quadrants(60, 92)[0]
    bands = np.dstack([255 - image_rgb[..., 0], image_rgb[..., ::-1], image_rgb[..., 1]])
    for folder in ("plain", "bands"):
        (in_tmp_path / folder).mkdir()
    Image.fromarray(image_rgb).save("plain/a.png")
    for planar in ("contig", "separate"):
        values = np.moveaxis(bands, 2, 0) if planar == "separate" else bands
        tifffile.imwrite(f"bands/{planar}.tif", values, photometric="minisblack", planarconfig=planar)
    segment("--image=plain", "--out=o", "--overlay=mean_colors")
    segment("--image=bands", "--out=o", "--overlay=mean_colors", "--bands", "4", "3", "2")
    expected = np.asarray(Image.open("o/a.png"))
    for planar in ("contig", "separate"):
        np.testing.assert_array_equal(np.asarray(Image.open(f"o/{planar}.png")), expected)
    segment("--video=bands", "--out=bands.mp4", "--bands", "4", "3", "2")
    argv = ["--base_model_weights=none", "--image=bands/contig.tif"]
    error = fails_with(inference_base_model.main, argv, capsys)
    assert "bands/contig.tif has 5 bands; --bands chooses three, as red, green and blue" in error
    error = fails_with(inference_base_model.main, [*argv, "--bands", "1", "2"], capsys)
    assert "--bands 1 2: expected three bands" in error
    argv = ["--base_model_weights=none", "--video=plain.mp4", "--bands", "1"]
    error = fails_with(inference_base_model.main, argv, capsys)
    assert "--value_range and --bands are for images and folders of frames" in error


def test_skip_existing(photos, in_tmp_path):
    argv = ["--image", str(photos), "--out=overlays", "--save_labels=labels", "--skip_existing"]
    segment(*argv)
    (in_tmp_path / "labels" / "a.npy").unlink()
    before = (in_tmp_path / "overlays" / "b.png").stat().st_mtime_ns
    summary = segment(*argv)
    assert (summary.n_done, summary.n_skipped) == (1, 4)
    assert (in_tmp_path / "labels" / "a.npy").is_file()
    assert (in_tmp_path / "overlays" / "b.png").stat().st_mtime_ns == before


def write_masks(photos, folder):
    """Write a mask for every photo, with a white left half."""
    for image in photos.rglob("?.*"):
        path = folder / image.relative_to(photos).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = np.asarray(Image.open(image)).shape[:2]
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[:, : width // 2] = 255
        Image.fromarray(mask).save(path)


def test_masks(photos, in_tmp_path):
    write_masks(photos, in_tmp_path / "masks")
    segment("--image", str(photos), "--mask=masks", "--save_labels=many", "--batchsize=4")
    segment("--image=photos/a.png", "--mask=masks/a.png", "--save_labels=one.npy")
    many = np.load(in_tmp_path / "many" / "a.npy")
    assert (many[:, 46:] == -1).all()
    assert many[:, :46].min() == 0
    np.testing.assert_array_equal(many, np.load(in_tmp_path / "one.npy"))


def read_counts(path):
    """Return the number of superpixels by dataset of an HDF5 file, without the merges."""
    with h5py.File(path) as file:
        return {name: len(np.unique(file[name][:])) for name in file if name.startswith("level_")}


def test_levels_of_an_image(photos, in_tmp_path, caplog):
    caplog.set_level("INFO")
    argv = ["--image=photos/a.png", "--levels", "24", "6", "--save_outlines=o.geojson", "--out=o.png"]
    summary = segment_levels([*argv, "--save_labels=l.H5"])
    assert read_counts("l.H5") == {"level_6": 6, "level_24": 24}
    assert re.fullmatch(
        r"photos/a\.png: levels of 6, 24 superpixels, \d+\.\d\d s on cpu, overlay in o\.png",
        caplog.messages[-1],
    )
    assert summary.n_measured == len(json.loads(Path("o.geojson").read_text())["features"]) == 24
    segment("--image=photos/a.png", "--save_labels=one.h5")
    with h5py.File("l.H5") as levels, h5py.File("one.h5") as one:
        np.testing.assert_array_equal(levels["level_24"][:], one["labels"][:])


def test_levels_of_a_folder_with_masks(photos, in_tmp_path):
    write_masks(photos, in_tmp_path / "masks")
    argv = ["--image=photos", "--mask=masks", "--batchsize=4", "--levels=5", "--levels=12"]
    assert segment_levels([*argv, "--save_labels=l", "--out={name}_o.png"]).n_done == 5
    names = ["a.h5", "b.h5", "c.h5", "trip/d.h5", "trip/day 1/e.h5"]
    assert files_below(in_tmp_path / "l") == names
    for name in names:  # one more value for the pixels outside the mask
        assert read_counts(in_tmp_path / "l" / name) == {"level_5": 6, "level_12": 13}


def test_level_below_the_parts_of_a_mask(photos, in_tmp_path, capsys):
    mask = np.zeros((60, 92), dtype=np.uint8)
    mask[::30, ::30] = 255
    Image.fromarray(mask).save("mask.png")
    argv = ["--image=photos/a.png", "--mask=mask.png", "--levels", "7", "8"]
    assert "at least 8 superpixels, but 7 are" in fails_with(segment_levels, argv, capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["2.5"], "argument --levels: .*'2.5'"),
        (["0"], "argument --levels: .*'0'"),
        (["2", "30", "30"], "--levels 2 30 30: .*repeated"),
        (["2", "6000"], "--levels 6000 .*5520 pixels"),
        (["2", "--nspix=5"], "--nspix"),
        (["2", "--fine_factor=1"], "--levels .*--fine_factor"),
        (["2", "--enforce_connectivity=False"], "--levels .*--enforce_connectivity"),
        (["2", "--exact_nspix"], "--exact_nspix .*--levels"),
        (["2", "--save_labels=l.npy"], "--save_labels l.npy: .*--levels.* .h5"),
        (["2", "--save_labels={name}.tif"], "--save_labels {name}.tif: .*--levels.* .h5"),
        (["2", "--save_labels=l.txt"], "--save_labels l.txt: .*.h5"),
    ],
)
def test_bad_levels(photos, in_tmp_path, argv, message, capsys):
    error = fails_with(segment_levels, ["--image=photos/a.png", "--levels", *argv], capsys)
    assert re.search(message, error)
    assert not list(in_tmp_path.glob("*.*"))


@pytest.mark.parametrize("option", ["--save_annotations", "--save_outlines"])
def test_files_for_labelling_tools_are_not_for_videos(in_tmp_path, option, capsys):
    error = fails_with(segment_levels, ["--video=v.mp4", f"{option}=a.json"], capsys)
    assert f"{option} is for images" in error


def test_style_of_overlays(photos, in_tmp_path):
    style = ["--boundary_color=#ff0000", "--boundary_width=1"]
    segment("--image=photos/a.png", *style, "--out=one.png")
    segment("--image=photos", *style)
    segment("--image=photos/a.png", "--overlay=mean_colors", "--out=means.png")
    one, many, means = (
        np.asarray(Image.open(in_tmp_path / name)) for name in ("one.png", "results/a.png", "means.png")
    )
    assert (one == (255, 0, 0)).all(axis=2).any()
    np.testing.assert_array_equal(one, many)
    assert len(np.unique(means.reshape(-1, 3), axis=0)) < 40


def test_outputs_below_the_images_are_skipped(photos, in_tmp_path):
    for _ in range(2):
        assert (
            segment("--image=photos", "--out=photos/overlays", "--save_labels=photos/x/{name}.png").n_done
            == 5
        )


def test_features_of_a_folder(photos, in_tmp_path, base_weights):
    argv = [f"--base_model_weights={base_weights}", "--nspix=24", "--save_features=features"]
    inference_base_model.main(["--image", str(photos), *argv])
    with np.load(in_tmp_path / "features" / "trip" / "d.npz") as saved:
        assert saved["pixel_features"].shape == (4, 48, 92)
    assert len(files_below(in_tmp_path / "results")) == 5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--image=empty"], "--image empty: "),
        (["--image=no_*.jpg"], "--image no_*.jpg: "),
        (["--image=photos", "--out=o.png"], "--out o.png is a single file"),
        (["--image=photos", "--out={name}.xyz"], "--out {name}.xyz: "),
        (["--image=photos", "--out=photos/notes.txt"], "--out photos/notes.txt "),
        (["--image=photos", "--out=photos"], "an output of photos/a.png and the image photos/a.png "),
        (["--image=photos", "--mask=no"], "--mask no: "),
        (["--image=photos/a.png", "--mask=no.png"], "no.png"),
        (["--image=photos/a.png", "--mask=photos/notes.txt"], "photos/notes.txt"),
        (["--image=photos/a.png", "--mask=photos/trip/d.png"], "(48, 92)"),
        (["--boundary_color=nocolour"], "'nocolour'"),
        (
            ["--image=photos", "--out=o/{name}.png", "--save_labels=o/{name}.png"],
            "o/a.png",
        ),
        (
            ["--image=photos/a.png", "--mask=photos/trip/d.png", "--out=photos/trip/d.png"],
            "an output of photos/a.png and --mask of photos/a.png ",
        ),
        (["--image", "photos/a.png", "copy/a.png", "--out=o"], "o/a.png"),
    ],
)
def test_bad_options(photos, in_tmp_path, argv, message, capsys):
    (in_tmp_path / "empty").mkdir()
    (in_tmp_path / "copy").mkdir()
    shutil.copy(photos / "b.jpg", in_tmp_path / "copy" / "a.png")
    assert message in fails_with(inference_base_model.main, ["--base_model_weights=none", *argv], capsys)
    assert not (in_tmp_path / "o" / "a.png").exists()


def test_image_whose_features_are_too_large_does_not_stop_the_others(photos, tmp_path):
    images = sorted(photos.glob("?.*"))
    flows = [Constant(1e30 if image.stem == "b" else 1.0) for image in images]
    jobs = [
        ImageJob(image, OutputFiles(tmp_path / f"{image.stem}.png"), flow=flow)
        for image, flow in zip(images, flows, strict=True)
    ]
    segmenter = Segmenter(CompositeSSNModel(4, 2), InputScales(0.26, 2.5, 1.0))
    summary = segment_files(segmenter, jobs, 24, batch_size=3)
    assert summary.n_done == 2
    (failure,) = summary.failures
    assert str(failure).startswith(f"{photos / 'b.jpg'}: features of")


class Constant:
    """Flow with one value everywhere."""

    files = ()

    def __init__(self, value):
        self.value = value

    def read(self, image_rgb):
        return np.full((*image_rgb.shape[:2], 4), self.value, np.float32)


def test_circle_of_links(photos, in_tmp_path, capsys):
    for name, target in ("one.png", "two.png"), ("two.png", "one.png"):
        (in_tmp_path / name).symlink_to(target)
    argv = ["--image", str(photos / "a.png")]
    assert "two.png" in fails_with(inference_base_model.main, [*argv, "--mask=two.png"], capsys)
    segment(*argv, "--out=one.png")  # replaces the link
    assert (in_tmp_path / "one.png").is_file()


def test_repeated_image_option_adds_to_the_first(photos, in_tmp_path):
    argv = [argument for name in ("a.png", "b.jpg") for argument in ("--image", str(photos / name))]
    assert segment(*argv, "--out=overlays").n_done == 2


@pytest.mark.parametrize("given", ["o/", "existing"])
def test_folder_for_a_single_image(photos, in_tmp_path, given):
    (in_tmp_path / "existing").mkdir()
    segment(f"--image={photos / 'a.png'}", f"--out={given}")
    assert files_below(in_tmp_path / given) == ["a.png"]
