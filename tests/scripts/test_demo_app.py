"""The demo page in a real browser, and its server as a program."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import fails_with, make_quadrants
from lib import cli
from lib.files.images import read_image
from lib.files.sessions import SessionFiles
from lib.inference.page import Page
from lib.inference.page_settings import DOWNLOADS
from lib.inference.segmenter import Segmenter
from lib.runtime.errors import InputError

gradio = pytest.importorskip("gradio", reason="needs requirements-demo.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

# Keep the browser from downloading updates.
_OFFLINE = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
def segmented(monkeypatch):
    """Names of the images that are segmented, one for each request."""
    names, segment = [], Page.segment

    def note(self, inputs, *settings, **options):
        names.append(inputs.image.name)
        return segment(self, inputs, *settings, **options)

    monkeypatch.setattr(Page, "segment", note)
    return names


@pytest.fixture
def address(monkeypatch, base_weights, composite_weights, uploads):
    """Serve the page with untrained models; it accepts 0.2 megapixels, and files of 0.1 MB."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # restores it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    import demo_app

    files = SessionFiles(uploads, examples=demo_app.EXAMPLE_FILES)
    app = demo_app.build_app(Page(base_weights, composite_weights, files, max_megapixels=0.2), files)
    _, address, _ = app.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", max_file_size=100_000
    )
    yield address
    app.close(verbose=False)


PATIENCE = 60  # seconds, for a browser on a machine under load
DESKTOP = {"width": 1300, "height": 1000}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    playwright.expect.set_options(timeout=1000 * PATIENCE)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_OFFLINE)
        yield browser
        browser.close()


@pytest.fixture
def page(address, browser, request):
    """Open the page, on a desktop unless the parameter is another size of the window."""
    page = browser.new_page(viewport=getattr(request, "param", DESKTOP))
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    yield page
    page.close()


def wait_for_result(page, result):
    playwright.expect(page.locator("#result textarea")).to_have_value(result)


def drop(page, path):
    page.locator("#image input[type=file]").set_input_files(path)


def set_slider(page, name, value):
    number = page.locator(f"#{name} input[type=number]")
    number.fill(str(value))
    number.press("Enter")


def unfold(page, name):
    page.locator(f"#{name} > button").click()


def choose(page, name, option):
    page.locator(f"#{name}").get_by_text(option, exact=True).click()


def download(page, kind, tmp_path):
    """Choose a kind of file, and return where it is saved."""
    page.locator("#kind input").click()
    page.get_by_role("option", name=kind).click()
    button = page.locator("#download")
    ending = DOWNLOADS.values[kind].ending
    playwright.expect(button).to_contain_text(f"_{ending}")
    with page.expect_download() as started:
        button.click()
    path = tmp_path / started.value.suggested_filename
    started.value.save_as(path)
    return path


def download_labels(page, tmp_path):
    return np.load(download(page, "Labels (.npy)", tmp_path))


@pytest.mark.slow
@needs_browser
def test_drop_an_image_move_a_slider_download_and_remove(segmented, page, base_weights, tmp_path):
    wait_for_result(page, "200 superpixels")  # for the initial image
    assert download_labels(page, tmp_path).shape == (300, 451)
    file = tmp_path / "image.gif"  # with a palette
    Image.fromarray(make_quadrants(120, 184)[0]).save(file)
    drop(page, file)
    wait_until(lambda: len(segmented) == 2, PATIENCE)
    set_slider(page, "count", 50)
    wait_for_result(page, "50 superpixels")
    assert segmented == ["cat.jpg", "image.gif", "image.gif"]
    labels = download_labels(page, tmp_path)
    assert labels.shape == (120, 184)
    assert labels.max() + 1 == 50
    expected = Segmenter.from_checkpoint(base_weights)(read_image(file), 50)
    np.testing.assert_array_equal(labels, expected.labels)
    assert download(page, "Outlines (.svg)", tmp_path).name == "image_outlines.svg"
    page.get_by_role("button", name="Remove Image").click()
    drop(page, file)  # at once
    wait_until(lambda: len(segmented) == 4, PATIENCE)
    wait_for_result(page, "50 superpixels")
    page.get_by_role("button", name="Remove Image").click()
    wait_for_result(page, "Drop an image above.")
    playwright.expect(page.locator("#picture img")).to_have_count(0)
    playwright.expect(page.locator("#download")).to_be_disabled()


def list_files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()


def check_fit(page):
    """Check that nothing is wider than the window."""
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    parts = ("image", "examples", "count", "settings", "picture", "level", "overlay", "download", "command")
    for name in parts:
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= width, name


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)
def test_two_frames_their_levels_and_their_command(segmented, page, tmp_path):
    wait_for_result(page, "200 superpixels")
    page.locator("#examples button").nth(1).click()
    playwright.expect(page.locator("#picture img").last).to_have_attribute("src", re.compile("00000_"))
    set_slider(page, "level", 40)
    wait_for_result(page, "40 superpixels")
    for name in ("overlay", "shell", "settings"):
        unfold(page, name)
    choose(page, "style", "Mean colours")
    for words in ("inference_optflow_composite_model.py", "--levels 40 200", "--overlay mean_colors"):
        playwright.expect(page.locator("#command")).to_contain_text(words)
    playwright.expect(page.locator("#next_frame img")).to_be_visible()
    labels = download_labels(page, tmp_path)
    assert labels.shape == (320, 480)
    assert labels.max() + 1 == 40
    assert segmented == ["cat.jpg", "00000.jpg"]  # levels and styles need no segmentation
    check_fit(page)
    choose(page, "model", "Own file")
    wait_for_result(page, "Drop a weight file of your own, .pth or .safetensors.")
    playwright.expect(page.locator("#weights")).to_be_visible()
    check_fit(page)
    choose(page, "model", "Base")
    wait_for_result(page, "200 superpixels")
    playwright.expect(page.locator("#next_frame")).to_be_hidden()
    page.locator("#picture").get_by_role("button", name="Fullscreen").click()
    wait_until(lambda: shown_width(page) >= page.viewport_size["width"] - 2, PATIENCE)


def shown_width(page):
    return page.locator("#picture img").first.bounding_box()["width"]


@pytest.mark.slow
@needs_browser
def test_refusals_clear_the_result(page, uploads, tmp_path, capfd):
    broken, large, heavy = (tmp_path / name for name in ("broken.jpg", "large.png", "heavy.bmp"))
    broken.write_text("This is no image.")
    Image.new("RGB", (500, 500)).save(large)
    Image.new("RGB", (200, 200)).save(heavy)
    pictures, labels = page.locator("#picture img"), page.locator("#download")
    for path, reason in (
        (broken, "broken.jpg is not a readable image (cannot identify image file 'broken.jpg')"),
        (large, "large.png has more than 0.2 megapixels, the limit of this page"),
    ):
        page.reload()
        wait_for_result(page, "200 superpixels")
        playwright.expect(pictures).to_have_count(2)
        playwright.expect(labels).to_be_enabled()
        drop(page, path)
        wait_for_result(page, reason)
        playwright.expect(pictures).to_have_count(0)
        playwright.expect(labels).to_be_disabled()
    drop(page, heavy)  # the browser shows a message of Gradio, and takes the old image away
    playwright.expect(page.get_by_text('"heavy.bmp"')).to_be_visible()
    wait_for_result(page, "Drop an image above.")
    drop(page, broken)
    wait_for_result(page, "broken.jpg is not a readable image (cannot identify image file 'broken.jpg')")
    page.close()
    wait_until(lambda: not list_files(uploads), PATIENCE)
    assert "Traceback" not in capfd.readouterr().err


def post(url, body, content_type="application/json"):
    """Return the status of an HTTP request, and the answer."""
    request = urllib.request.Request(url, body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


def upload(address, content):
    """Upload a file as the browser does; return the status, and a list of its path on the server."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + content
    url = f"{address}gradio_api/upload"
    return post(url, body + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")


def start_segmentation(address, image, model="Base", next_frame=None, weights=None):
    """Request a segmentation as a program would; return the address of its events."""
    data = [model, next_frame, weights, "Borders", "yellow", 0, "Labels (.npy)"]
    url = f"{address}gradio_api/call/segment"
    _, answer = post(url, json.dumps({"data": [image, 20, 1, 3, *data]}).encode())
    return f"{url}/{answer['event_id']}"


META = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.slow
def test_only_uploads_are_read(address, tmp_path):
    secret = tmp_path / "secret.png"
    Image.fromarray(make_quadrants(60, 92)[0]).save(secret)
    _, (path,) = upload(address, secret.read_bytes())

    def segment(image, *other):
        with urllib.request.urlopen(start_segmentation(address, image, *other)) as events:
            return events.read().decode()

    assert "20 superpixels" in segment({"path": path, **META})
    for image in ({"path": str(secret), **META}, {"path": str(secret)}, str(secret)):
        events = segment(image)
        assert "event: error" in events or '"secret.png is not an upload"' in events
        assert "labels.npy" not in events
    upload_of_image, secret = {"path": path, **META}, {"path": str(secret), **META}
    for other in (("Composite, two frames", secret), ("Own file", None, secret)):
        events = segment(upload_of_image, *other)
        assert "event: error" in events or '"secret.png is not an upload"' in events


# The page, with a segmentation that never ends.
_BUSY_PAGE = """
import sys, torch
import demo_app
from lib import cli
from lib.inference import page

def compute(path):
    print("computing", flush=True)
    while True:
        torch.rand(1000, 1000) @ torch.rand(1000, 1000)

page.read_image = compute
cli.run(lambda: demo_app.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_sigterm_deletes_uploads(base_weights, tmp_path):
    folder, log = tmp_path / "temporary", tmp_path / "log"
    folder.mkdir()
    options = ("--base_model_weights", base_weights, "--max_megapixels=0.1", "--port=7893", "--device=cpu")
    environment = os.environ | {"TMPDIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("GRADIO_TEMP_DIR", None)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _BUSY_PAGE, *options],
            cwd=cli.REPO_ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: process.poll() is not None or "page at" in log.read_text(), 60)
        address = "http://127.0.0.1:7893/"
        (own,) = folder.glob("superpixels_page_*")
        status, (path,) = upload(address, b"content")
        assert status == 200
        assert Path(path).read_bytes() == b"content"
        assert Path(path).is_relative_to(own)
        assert upload(address, bytes(1_700_000))[0] == 200
        assert upload(address, bytes(1_900_000))[0] == 413
        assert len(list_files(own)) == 3  # with the lock
        start_segmentation(address, {"path": path, **META})
        wait_until(lambda: "computing" in log.read_text(), 10)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        assert not own.exists()
        assert list_files(folder) == []
        assert log.read_text() == f"page at {address}, Ctrl-C stops it\ncomputing\n"
    finally:
        process.kill()


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """Options of each launch of the page, which then fails."""
    calls = []

    def fail(app, **options):
        calls.append(options)
        raise OSError("Cannot find empty port; set `server_port`")

    monkeypatch.setattr(gradio.Blocks, "launch", fail)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # restores it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return calls


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.0.2", False),
        ("lab", False),
    ],
)
def test_warning_on_an_open_page(launches, base_weights, caplog, host, is_local):
    import demo_app

    with pytest.raises(InputError, match=f"--host {host} --port 7860 is taken"):
        demo_app.main(["--base_model_weights", str(base_weights), "--host", host])
    assert launches[0]["server_name"] == host
    warning = f"--host {host}: anyone on the network can open this page and upload images"
    assert (warning in caplog.messages) == (not is_local)


def test_default_options_and_taken_port(launches, base_weights, tmp_path, capsys):
    import demo_app

    error = fails_with(demo_app.main, ["--base_model_weights", str(base_weights), "--port", "99"], capsys)
    assert "--host 127.0.0.1 --port 99 is taken or may not be used; choose another" in error
    assert launches == [
        {
            "server_name": "127.0.0.1",
            "server_port": 99,
            "max_file_size": 401_000_000,
            "prevent_thread_lock": True,
            "quiet": True,
        }
    ]
    assert Image.MAX_IMAGE_PIXELS == 25e6  # Pillow refuses twice as many
    assert list(tmp_path.glob("superpixels_page_*")) == []
