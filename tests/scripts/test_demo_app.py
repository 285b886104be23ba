"""The demo page in a real browser, and the label files it writes."""

import shutil

import numpy as np
import pytest
from PIL import Image

from helpers import make_quadrants
from lib.files.images import read_image
from lib.inference.segmenter import Segmenter

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
def page(monkeypatch, base_weights):
    """Open the page with an untrained model."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    import demo_app

    app = demo_app.build_app(base_weights)
    _, address, _ = app.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_OFFLINE)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(address)
        yield page
        browser.close()
    app.close()


def wait_for_result(page, result):
    playwright.expect(page.locator("#result textarea")).to_have_value(result, timeout=60_000)


def set_slider(page, name, value):
    number = page.locator(f"#{name} input[type=number]")
    number.fill(str(value))
    number.press("Enter")


def download_labels(page, tmp_path):
    with page.expect_download() as download:
        page.locator("#labels").click()
    download.value.save_as(tmp_path / "labels.npy")
    return np.load(tmp_path / "labels.npy")


@pytest.mark.slow
@needs_browser
def test_drop_an_image_move_a_slider_and_download(page, base_weights, tmp_path):
    wait_for_result(page, "200 superpixels")  # for the initial image
    assert download_labels(page, tmp_path).shape == (300, 451)
    file = tmp_path / "image.gif"  # with a palette
    Image.fromarray(make_quadrants(120, 184)[0]).save(file)
    page.locator("#image button[aria-label='Clear'], #image button[aria-label='Remove Image']").first.click()
    wait_for_result(page, "Drop an image above.")
    page.locator("#image input[type=file]").set_input_files(file)
    wait_for_result(page, "200 superpixels")
    set_slider(page, "count", 50)
    wait_for_result(page, "50 superpixels")
    labels = download_labels(page, tmp_path)
    assert labels.shape == (120, 184)
    assert labels.max() + 1 == 50
    expected = Segmenter.from_checkpoint(base_weights)(read_image(file), 50)
    np.testing.assert_array_equal(labels, expected.labels)
    for tab, name in (("Mean colours", "mean"), ("Boundaries", "boundaries"), ("Overlay", "overlay")):
        page.get_by_role("tab", name=tab).click()
        playwright.expect(page.locator(f"#{name} img")).to_be_visible(timeout=10_000)


def test_newest_label_files_are_kept(monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    import demo_app

    files = demo_app.LabelFiles(n_kept=2)
    paths = [files.save(np.full((2, 3), value)) for value in range(4)]
    assert [path.exists() for path in paths] == [False, False, True, True]
    assert [int(np.load(path)[0, 0]) for path in paths[2:]] == [2, 3]
    assert len(list(paths[3].parent.parent.iterdir())) == 2
