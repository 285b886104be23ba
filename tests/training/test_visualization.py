"""Training curves, overlays and flow pictures."""

import math

import numpy as np
import pytest
from PIL import Image

from lib.optflow.drawing import draw_flow
from lib.runtime.errors import RunError
from lib.superpixels.drawing import BOUNDARY_COLOR, draw_boundaries, draw_mean_colors, draw_nested_boundaries
from lib.training.curves import draw_training_curves, training_figure


def training_line(step, **figures):
    noise = 1.5 if step % 3 == 0 else 1.0
    terms = {"reconstruction": noise / step, "position": 0.1 / step}
    rest = {"grad_norm": noise, "lr": 1e-4, "images_per_s": 90.0, "loader_share": 0.1}
    return {"step": step, "loss": sum(terms.values()), **terms, **rest, **figures}


def validation_line(step, score, sets=("near", "far_val")):
    figures = {"n_spixels": 200.0, "asa": score, "boundary_recall": 0.8}
    return {
        "step": step,
        "score": score,
        **{f"{name}_{metric}": value for name in sets for metric, value in figures.items()},
    }


def make_log():
    validations = [validation_line(step, score) for step, score in ((4, 0.5), (8, 0.9), (12, 0.7))]
    return sorted([*map(training_line, range(1, 13)), *validations], key=lambda line: line["step"])


def make_panels(log):
    return {axes.get_title(): axes for axes in training_figure(log).axes}


def labelled(axes):
    """Return the curves of a panel by their legend label."""
    curves, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, curves, strict=True))


def test_each_logged_quantity_has_a_panel():
    panels = make_panels(make_log())
    assert list(panels) == [
        "Loss and its terms",
        "Gradient norm",
        "Learning rate",
        "Achievable segmentation accuracy ↑",
        "Boundary recall ↑",
        "Superpixels",
    ]
    assert {axes.get_xlabel() for axes in panels.values()} == {"step"}
    loss = panels["Loss and its terms"]
    assert loss.get_yscale() == "log"
    assert list(labelled(loss)) == ["loss", "reconstruction", "position"]
    assert len({curve.get_linestyle() for curve in labelled(loss).values()}) == 3


def test_validation_has_a_curve_for_each_set_and_a_mark_at_the_best_score():
    figure = training_figure(make_log())
    accuracy = labelled(figure.axes[3])
    assert list(accuracy) == ["near", "far_val", "best score: 0.9000 at step 8"]
    np.testing.assert_array_equal(accuracy["far_val"].get_xydata(), [[4, 0.5], [8, 0.9], [12, 0.7]])
    np.testing.assert_array_equal(accuracy["best score: 0.9000 at step 8"].get_xydata(), [[8, 0.9]] * 2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(accuracy)


def test_first_of_equal_scores_is_the_best():
    panels = make_panels([validation_line(step, 0.5) for step in (3, 6)])
    assert "best score: 0.5000 at step 3" in labelled(panels["Superpixels"])


def test_log_keys_are_split_into_set_and_metric():
    log = [{"step": 1, "score": 1.0, "asa": 0.9, "far_val_mean_iou_foreground": 0.5, "speed": 3.0}]
    panels = make_panels(log)
    assert list(panels) == ["Achievable segmentation accuracy ↑", "Mean IoU without segment 0 ↑", "speed"]
    assert [next(iter(labelled(axes))) for axes in panels.values()] == ["validation", "far_val", "validation"]


def test_noisy_curves_are_drawn_with_their_running_median():
    losses = 2 + np.sin(np.arange(3000))
    losses[1500] = 1000.0
    log = [training_line(step, loss=loss) for step, loss in enumerate(losses, start=1)]
    raw, median = make_panels(log)["Loss and its terms"].lines[:2]
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    np.testing.assert_allclose(median.get_ydata(), 2, atol=0.2)
    assert median.get_label() == "loss"
    assert raw.get_alpha() < 0.5


def test_non_finite_values_are_left_blank():
    log = make_log()
    log[2]["loss"] = math.nan
    log[0]["grad_norm"] = math.inf
    for line in log:
        if "lr" in line:
            line["lr"] = math.nan
            line["position"] = 0.0  # cannot be drawn on a logarithmic axis
        else:
            line["score"] = line["near_asa"] = math.nan
    panels = make_panels(log)
    assert "Learning rate" not in panels
    curves = labelled(panels["Loss and its terms"])
    assert list(curves) == ["loss", "reconstruction"]
    assert np.flatnonzero(np.isnan(curves["loss"].get_ydata())).tolist() == [2]
    assert np.isnan(labelled(panels["Gradient norm"])["grad_norm"].get_ydata()[0])
    assert list(labelled(panels["Achievable segmentation accuracy ↑"])) == ["far_val"]


@pytest.mark.draws
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "log",
    [
        [],
        [training_line(1)],
        [validation_line(0, 0.5)],
        [{"step": 1, "loss": math.nan}, {"step": 1, "score": math.nan, "near_asa": math.nan}],
    ],
    ids=["empty", "one interval", "one validation", "all NaN"],
)
def test_short_logs_can_be_drawn(tmp_path, log):
    draw_training_curves(log, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 128  # something is drawn


def test_single_points_are_marked():
    for axes in make_panels([training_line(1), validation_line(1, 0.5)]).values():
        assert all(curve.get_marker() in (".", "o") for curve in labelled(axes).values())


def test_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    draw_training_curves(make_log(), path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    def run_out_of_space(figure, temporary, **options):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.training.curves.Figure.savefig", run_out_of_space)
    with pytest.raises(RunError, match=r"curves\.png \(No space left on device\)"):
        draw_training_curves([], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_boundaries_are_drawn_and_other_pixels_kept():
    image_rgb = np.full((10, 12, 3), 100, dtype=np.uint8)
    labels = np.zeros((10, 12), dtype=np.int32)
    labels[:, 6:] = 1
    overlay = draw_boundaries(image_rgb, labels, width=2)
    np.testing.assert_array_equal(overlay[:, 5:7], np.broadcast_to(BOUNDARY_COLOR, (10, 2, 3)))
    np.testing.assert_array_equal(overlay[:, [4, 7]], np.full((10, 2, 3), 40))  # darker, beside the border
    assert (overlay[:, :4] == 100).all()
    assert (overlay[:, 8:] == 100).all()


@pytest.mark.parametrize(("side", "width"), [(4, 1), (10, 1), (25, 2), (45, 3), (200, 6)])
def test_borders_of_larger_superpixels_are_wider(side, width):
    labels = np.repeat([0, 1], side)[None].repeat(side, axis=0)
    image_rgb = np.zeros((side, 2 * side, 3), np.uint8)
    expected = draw_boundaries(image_rgb, labels, width=width)
    np.testing.assert_array_equal(draw_boundaries(image_rgb, labels), expected)


@pytest.mark.parametrize(("width", "drawn"), [(1, [5]), (2, [5, 6]), (3, [4, 5, 6]), (4, [4, 5, 6, 7])])
def test_width_and_colour_of_boundaries(width, drawn):
    labels = np.zeros((10, 12), dtype=np.int32)
    labels[:, 6:] = 1
    overlay = draw_boundaries(np.zeros((10, 12, 3), np.uint8), labels, color=(255, 0, 0), width=width)
    assert np.flatnonzero(overlay[4, :, 0]).tolist() == drawn
    assert not overlay[..., 1:].any()


def test_coarser_borders_are_wider_and_hide_finer_ones():
    image_rgb = np.full((4, 40, 3), 100, dtype=np.uint8)
    col = np.tile(np.arange(40), (4, 1))
    levels = [(col >= 20).astype(np.int32), col // 10, col // 5]
    overlay = draw_nested_boundaries(image_rgb, levels, color=(255, 0, 0), width=2)
    red = overlay[0, :, 0]
    assert [np.flatnonzero(red == value).tolist() for value in np.unique(red)] == [
        sorted(set(range(40)) - {4, 14, 24, 34, 8, 9, 10, 28, 29, 30, 17, 18, 19, 20, 21}),
        [4, 14, 24, 34],
        [8, 9, 10, 28, 29, 30],
        [17, 18, 19, 20, 21],
    ]
    assert red.max() == 255
    assert (image_rgb == 100).all()


def test_mean_colours_keep_pixels_outside_the_mask():
    image_rgb = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    labels = np.array([[0, 0, -1], [2, 2, -1]])
    colors = np.array([[10.4, 20.6, 0], [np.nan] * 3, [1, 2, 3]])
    painted = draw_mean_colors(image_rgb, labels, colors)
    assert painted[0, 0].tolist() == [10, 21, 0]
    assert painted[1, 1].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(painted[:, 2], image_rgb[:, 2])


def test_flow_colours():
    flow = np.zeros((50, 60, 4), dtype=np.float32)
    flow[..., 1] = 3  # to the right in the next frame, unmoved since the previous one
    picture = draw_flow(flow)
    assert picture.shape == (50, 120, 3)
    assert (picture[:, :60] == (255, 0, 0)).all()
    assert (picture[30, 60:] == 255).all()
    assert (picture[5, -1] == (255, 0, 0)).all()  # the colour wheel agrees
    assert (draw_flow(np.zeros((50, 60, 4)))[:, :60] == 255).all()
