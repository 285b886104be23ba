"""Choice of settings: with a stub whose best settings are known, and against a search one by one."""

import os
import signal
from collections import Counter
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import make_quadrants
from lib.datasets.base import SegmentedImage
from lib.evaluation import settings_choice
from lib.evaluation.settings_choice import ChosenSettings, choose_settings
from lib.inference import Segmenter
from lib.metrics.registry import Scores, score_label_maps
from lib.network.inputs import InputScales
from lib.runtime.errors import InputError
from lib.runtime.signals import Stop, stop_flag
from lib.superpixels.merge_settings import MergeSettings
from model import SSNModel


class StubSegmenter:
    """Segmenter whose label maps are the settings that made them."""

    def __init__(self, pos_scale=10.0, n_iter=3):
        self.scales = InputScales(pos_scale=pos_scale)
        self.n_iter = n_iter
        self.names = []  # of the images, in the order in which they were segmented

    def preprocess(self, image_rgb, extra, *, name):
        self.names.append(name)
        return SimpleNamespace(n_pixels=image_rgb.shape[0] * image_rgb.shape[1])

    def sweep(self, image, settings):
        return [self.trial(n_spixels, pos_scale=pos_scale) for n_spixels, pos_scale in settings]

    def sweep_merging(self, image, n_spixels, fine_factors, merge_pos_scales):
        return {
            (factor, scale): self.trial(n_spixels, fine_factor=factor, merge_pos_scale=scale)
            for factor in fine_factors
            for scale in merge_pos_scales
        }

    def trial(self, n_spixels, **settings):
        start = {"n_spixels": n_spixels, "pos_scale": self.scales.pos_scale, "n_iter": self.n_iter}
        return SimpleNamespace(labels=SimpleNamespace(**{**start, **settings}))


@pytest.fixture
def score_by(monkeypatch):
    """Return a function that replaces the scores of label maps, given as a function of their settings."""

    def replace(value_of, *, figure="asa"):
        def score(label_maps, image_rgb, annotations, metrics):
            assert set(metrics) == {figure, "boundary_recall", "compactness"}
            scores = []
            for trial in label_maps:
                values = value_of(trial)
                values = values if isinstance(values, dict) else {figure: values}
                values = {"boundary_recall": 0.0, "compactness": 0.0, **values}
                compactness = values.pop("compactness")
                scores.append(Scores({"compactness": compactness}, [values for _ in annotations]))
            return scores

        monkeypatch.setattr(settings_choice, "score_label_maps", score)

    return replace


def make_images(*shapes, n_annotations=1):
    return [
        SegmentedImage(str(idx), np.zeros((*shape, 3), np.uint8), [np.zeros(shape, np.int32)] * n_annotations)
        for idx, shape in enumerate(shapes)
    ]


LARGE = (80, 100)  # rows and columns that allow 1000 superpixels of 8 pixels

TARGET = MergeSettings(
    fine_factor={100: 5.0, 200: 3.0, 400: 2.0, 1000: 2.0},
    merge_pos_scale={100: 0.2, 200: 0.35, 400: 1.0, 1000: 1.5},
)


def closeness(trial):
    """Return a score that is highest for the position scale 12, 7 iterations, and `TARGET`."""
    score = 1 - abs(trial.pos_scale - 12) / 20 - abs(trial.n_iter - 7) / 10
    if not hasattr(trial, "fine_factor"):
        return score
    wanted = TARGET.fine_factor[trial.n_spixels], TARGET.merge_pos_scale[trial.n_spixels]
    return score - abs(trial.fine_factor - wanted[0]) - abs(trial.merge_pos_scale - wanted[1])


@pytest.mark.parametrize("figure", ["asa", "mean_iou"])
def test_best_settings_are_found(score_by, figure):
    score_by(closeness, figure=figure)
    segmenter = StubSegmenter()
    chosen = choose_settings(segmenter, make_images(LARGE, LARGE), figure=figure)
    assert chosen == ChosenSettings(12.0, 7, TARGET)
    assert (segmenter.scales.pos_scale, segmenter.n_iter) == (10.0, 3)


def test_later_settings_are_scored_with_those_chosen_before(score_by):
    seen = Counter()

    def record(trial):
        merging = (trial.fine_factor, trial.merge_pos_scale) if hasattr(trial, "fine_factor") else None
        seen[trial.n_spixels, trial.pos_scale, trial.n_iter, merging] += 1
        return closeness(trial)

    score_by(record)
    choose_settings(StubSegmenter(), make_images(LARGE))
    merges = [(factor, scale) for factor in (2.0, 3.0, 5.0) for scale in (0.2, 0.35, 0.6, 1.0, 1.5)]
    expected = Counter()
    for n_spixels in (100, 200, 400, 1000):
        expected.update((n_spixels, 10.0, n_iter, None) for n_iter in (5, 7, 10))
        expected[n_spixels, 10.0, 7, None] += 1  # whose compactness the others must keep
        for pos_scale in (7.0, 8.4, 10.0, 12.0, 14.0):
            expected.update((n_spixels, pos_scale, 7, merging) for merging in merges)
    assert seen == expected


def test_position_scale_is_judged_with_the_best_merges_of_each_count(score_by):
    """With any merges that suit all counts, 12 is best; with those of `TARGET`, 14 is."""

    def score(trial):
        if not hasattr(trial, "fine_factor") or trial.pos_scale not in (12.0, 14.0):
            return 0.5
        wanted = TARGET.fine_factor[trial.n_spixels], TARGET.merge_pos_scale[trial.n_spixels]
        is_wanted = (trial.fine_factor, trial.merge_pos_scale) == wanted
        return 0.8 if trial.pos_scale == 12.0 else 0.7 + 0.2 * is_wanted

    score_by(score)
    chosen = choose_settings(StubSegmenter(), make_images(LARGE))
    assert (chosen.pos_scale, chosen.merging) == (14.0, TARGET)


def test_every_count_has_the_same_weight(score_by):
    """7 has the higher mean over counts, and 14 over images; two of three are too small for 400 and 1000."""
    gains = {100: (14.0, 0.3), 200: (7.0, 0.25), 400: (7.0, 0.2), 1000: (14.0, 0.1)}

    def score(trial):
        liked, gain = gains[trial.n_spixels]
        return 0.5 + gain * (trial.pos_scale == liked)

    score_by(score)
    images = make_images(LARGE, (20, 80), (20, 80))
    assert choose_settings(StubSegmenter(), images).pos_scale == 7.0


@pytest.mark.parametrize(("gain", "n_iter", "fine_factor"), [(0.0004, 5, 2.0), (0.0006, 7, 3.0)])
def test_time_decides_between_nearly_equal_scores(score_by, gain, n_iter, fine_factor):
    """The second value of each setting gains `gain`, the third 0.0001 more; 0.0005 is worth time."""

    def score(trial):
        gains = {0: 0, 1: gain, 2: gain + 0.0001}
        if hasattr(trial, "fine_factor"):
            best_of_factor = trial.merge_pos_scale == {2.0: 0.6, 3.0: 1.0, 5.0: 0.2}[trial.fine_factor]
            return gains[(2.0, 3.0, 5.0).index(trial.fine_factor)] - 0.01 * (not best_of_factor)
        return gains[(5, 7, 10).index(trial.n_iter)]

    score_by(score)
    chosen = choose_settings(StubSegmenter(), make_images(LARGE))
    assert chosen.n_iter == n_iter
    assert set(chosen.merging.fine_factor.values()) == {fine_factor}
    assert set(chosen.merging.merge_pos_scale.values()) == {{2.0: 0.6, 3.0: 1.0}[fine_factor]}


def test_recall_weighs_a_tenth(score_by):
    values = {
        7.0: {"asa": 0.905, "boundary_recall": 0.74},  # 0.905 + 0.1 * 0.74 = 0.979
        8.4: {"asa": 0.89, "boundary_recall": 0.88},  # 0.978
        10.0: {"asa": 0.902, "boundary_recall": 0.75},  # 0.977
        12.0: {"asa": 0.901, "boundary_recall": 0.79},  # 0.980
        14.0: {"asa": 0.91, "boundary_recall": 0.68},  # 0.978
    }
    score_by(lambda trial: values[trial.pos_scale])
    assert choose_settings(StubSegmenter(), make_images(LARGE)).pos_scale == 12.0


@pytest.mark.parametrize(("lost", "expected"), [(0.0, 7.0), (0.001, 7.0), (0.011, 10.0), (0.1, 10.0)])
def test_less_compact_settings_lose_even_if_more_accurate(score_by, lost, expected):
    """The lowest position scale gains 0.1, and loses some of the compactness of 0.3."""

    def score(trial):
        is_lowest = trial.pos_scale == 7.0
        asa = {7.0: 0.9, 10.0: 0.8}.get(trial.pos_scale, 0.7)
        return {"asa": asa, "compactness": 0.3 - lost * is_lowest}

    score_by(score)
    assert choose_settings(StubSegmenter(), make_images(LARGE)).pos_scale == expected


def test_merges_keep_the_compactness_of_their_count(score_by):
    """At 100 and 400, the most accurate merges are less compact than the start; elsewhere they are not."""
    start = {100: 0.5, 200: 0.2, 400: 0.5, 1000: 0.2}

    def score(trial):
        if not hasattr(trial, "fine_factor"):
            return {"asa": 0.8, "compactness": start[trial.n_spixels]}
        is_accurate = (trial.fine_factor, trial.merge_pos_scale) == (5.0, 0.2)
        is_compact = (trial.fine_factor, trial.merge_pos_scale) == (3.0, 1.5)
        asa = 0.95 if is_accurate else 0.9 if is_compact else 0.8
        return {"asa": asa, "compactness": 0.3 if is_accurate else 0.5}

    score_by(score)
    merging = choose_settings(StubSegmenter(), make_images(LARGE)).merging
    assert merging.fine_factor == {100: 3.0, 200: 5.0, 400: 3.0, 1000: 5.0}
    assert merging.merge_pos_scale == {100: 1.5, 200: 0.2, 400: 1.5, 1000: 0.2}


def test_compactness_is_that_of_the_start_with_the_chosen_iterations(score_by):
    """With 7 iterations, which are most accurate, the start is less compact, as are the best merges."""

    def score(trial):
        if not hasattr(trial, "fine_factor"):
            return {"asa": 0.7 + 0.1 * (trial.n_iter == 7), "compactness": 0.2 if trial.n_iter == 7 else 0.4}
        is_best = trial.pos_scale == 8.4
        return {"asa": 0.9 if is_best else 0.85, "compactness": 0.2 if is_best else 0.4}

    score_by(score)
    chosen = choose_settings(StubSegmenter(), make_images(LARGE))
    assert (chosen.n_iter, chosen.pos_scale) == (7, 8.4)


def test_compactness_is_a_mean_over_images(monkeypatch):
    """The most accurate scale is less compact in one image, by as much as it is more compact in the other."""

    def score(label_maps, image_rgb, annotations, metrics):
        change = 0.1 if image_rgb.shape[:2] == LARGE else -0.1
        return [
            Scores(
                {"compactness": 0.3 + change * (trial.pos_scale == 8.4)},
                [{"asa": 0.8 + 0.01 * (trial.pos_scale == 8.4), "boundary_recall": 0.0}],
            )
            for trial in label_maps
        ]

    monkeypatch.setattr(settings_choice, "score_label_maps", score)
    images = make_images(LARGE, LARGE[::-1])
    assert choose_settings(StubSegmenter(), images).pos_scale == 8.4


def test_more_compact_settings_are_not_preferred(score_by):
    """All settings are more compact than at the start; the less compact ones are slightly more accurate."""

    def score(trial):
        if not hasattr(trial, "fine_factor"):
            return {"asa": 0.8, "compactness": 0.1}
        asa = 0.9 - 0.001 * abs(trial.pos_scale - 8.4) - 0.001 * trial.merge_pos_scale
        return {"asa": asa, "compactness": 0.02 * trial.pos_scale + 0.2 * trial.merge_pos_scale}

    score_by(score)
    chosen = choose_settings(StubSegmenter(), make_images(LARGE))
    assert chosen.pos_scale == 8.4
    assert set(chosen.merging.merge_pos_scale.values()) == {0.2}


def test_every_pair_has_the_same_weight(monkeypatch):
    """The first image has one annotation and likes 7; the second has three, and likes 14 half as much."""

    def score(label_maps, image_rgb, annotations, metrics):
        liked, gain = (7.0, 0.2) if len(annotations) == 1 else (14.0, 0.1)
        pair = [{"asa": gain * (trial.pos_scale == liked), "boundary_recall": 0.0} for trial in label_maps]
        return [Scores({"compactness": 0.0}, [each] * len(annotations)) for each in pair]

    monkeypatch.setattr(settings_choice, "score_label_maps", score)
    images = make_images(LARGE) + make_images(LARGE, n_annotations=3)
    assert choose_settings(StubSegmenter(), images).pos_scale == 14.0


def test_pairs_without_a_score_do_not_count(monkeypatch):
    def score(label_maps, image_rgb, annotations, metrics):
        void = {"asa": np.nan, "boundary_recall": np.nan}
        return [
            Scores({"compactness": 0.0}, [void, {"asa": closeness(trial), "boundary_recall": 0.0}])
            for trial in label_maps
        ]

    monkeypatch.setattr(settings_choice, "score_label_maps", score)
    chosen = choose_settings(StubSegmenter(), make_images(LARGE, n_annotations=2))
    assert chosen == ChosenSettings(12.0, 7, TARGET)


@pytest.mark.parametrize(
    ("shapes", "counts"),
    [
        ([(20, 40)], {100}),  # 800 pixels, exactly 8 for each of 100 superpixels
        ([(20, 79)], {100}),
        ([(20, 80), (10, 79)], {100, 200}),
        ([(10, 10), LARGE], {100, 200, 400, 1000}),
    ],
)
def test_small_images_leave_counts_out(score_by, shapes, counts):
    score_by(closeness)
    merging = choose_settings(StubSegmenter(), make_images(*shapes)).merging
    assert set(merging.fine_factor) == set(merging.merge_pos_scale) == counts


def test_images_that_are_all_too_small(score_by):
    score_by(closeness)
    with pytest.raises(InputError, match="all images have fewer than 800 pixels"):
        choose_settings(StubSegmenter(), make_images((20, 39), (10, 10)))


@pytest.mark.parametrize(("n_images", "n_used"), [(1, 1), (2, 2), (10, 10), (11, 10), (100, 10), (999, 10)])
def test_at_most_10_evenly_spaced_images(score_by, n_images, n_used):
    score_by(closeness)
    segmenter = StubSegmenter()
    choose_settings(segmenter, make_images(*[(20, 40)] * n_images))
    indices = [int(name) for name in segmenter.names]
    assert indices == 2 * indices[:n_used]  # the same images for the iterations and for the other settings
    indices = indices[:n_used]
    assert (indices[0], indices[-1]) == (0, n_images - 1)
    steps = np.diff(indices)
    assert np.abs(steps - (n_images - 1) / max(n_used - 1, 1)).max(initial=0) < 1


def test_ctrl_c_ends_the_search_at_the_next_image(score_by):
    class Interrupted(StubSegmenter):
        def preprocess(self, *args, **options):
            if len(self.names) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().preprocess(*args, **options)

    score_by(closeness)
    segmenter = Interrupted()
    with pytest.raises(Stop), stop_flag.set_by_signals():
        choose_settings(segmenter, make_images(*[LARGE] * 5))
    assert segmenter.names == ["0", "1"]


def test_settings_equal_those_of_a_search_one_by_one(device, monkeypatch, few_trials):
    monkeypatch.setattr(settings_choice, "_POS_SCALE_FACTORS", (0.2, 1.0, 3.0))
    monkeypatch.setattr(settings_choice, "_WORTH_TIME", 0.0)  # the best score, whatever its time
    monkeypatch.setattr(settings_choice, "_FINE_FACTORS", (2.0, 3.0))
    model, images = SSNModel(4, n_iter=3), []
    for seed in range(2):
        image_rgb, labels = make_quadrants(seed=seed)
        images.append(SegmentedImage(str(seed), image_rgb, [labels, labels // 2]))

    def score(pos_scale=7.0, **settings):
        """Return ASA + 0.1 * boundary recall, and the compactness."""
        segmenter = Segmenter(model, InputScales(0.3, pos_scale), device=device, **settings)
        accuracy, compactness = [], []
        for image in images:
            labels = segmenter(image.image_rgb, 24).labels
            metrics = ("asa", "boundary_recall", "compactness")
            (found,) = score_label_maps([labels], image.image_rgb, image.annotations, metrics)
            accuracy += [pair["asa"] + 0.1 * pair["boundary_recall"] for pair in found.pairs]
            compactness.append(found.spixels["compactness"])
        return np.mean(accuracy), np.mean(compactness)

    chosen = choose_settings(Segmenter(model, InputScales(0.3, 7.0), device=device), images)
    n_iter = max((2, 4), key=lambda n_iter: score(n_iter=n_iter)[0])
    _, wanted = score(n_iter=n_iter)

    def value(trial):
        pos_scale, factor, merge_pos_scale = trial
        accuracy, compactness = score(
            pos_scale, n_iter=n_iter, fine_factor=factor, merge_pos_scale=merge_pos_scale
        )
        return accuracy - 10 * max(0, wanted - compactness)

    pos_scale, factor, scale = max(product((1.4, 7.0, 21.0), (2.0, 3.0), (0.2, 1.0)), key=value)
    assert chosen == ChosenSettings(pos_scale, n_iter, MergeSettings({24: factor}, {24: scale}))
