"""The panel simulator: reproducible, and its truth is true."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import DiskError, SourceError
from pipeline.sources import panel_pattern
from pipeline.sources.panel import CLASSES, Panel, PanelSimulator, render_folder

DEFECTIVE = PanelSimulator(seed=3, defect_rate=1.0)
SMALL = replace(DEFECTIVE, size=(64, 64))


def difference(a: Panel, b: Panel) -> np.ndarray:
    """Signed grey level difference per pixel, float64 [H, W]."""
    return a.image.astype(float) - b.image.astype(float)


def visibility(simulator: PanelSimulator, sequence: int) -> float:
    """Mean grey level change inside the truth against the defect-free twin, without noise."""
    quiet = replace(simulator, noise=0.0)
    with_defect = quiet.panel(sequence)
    change = np.abs(difference(with_defect, replace(quiet, defect_rate=0.0).panel(sequence)))
    return float(change[with_defect.truth > 0].mean())


def test_same_parameters_and_number_give_the_same_bytes_in_any_order():
    """A panel depends on nothing but the parameters and its number, not on what was rendered before."""
    forward = [DEFECTIVE.panel(n) for n in range(8)]
    backward = [PanelSimulator(seed=3, defect_rate=1.0).panel(n) for n in reversed(range(8))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert a.class_name == b.class_name
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.truth, b.truth)


def test_another_process_renders_the_same_bytes():
    """Two machines of a line can simulate the same shift independently."""
    code = (
        "import sys; from pipeline.sources.panel import PanelSimulator as P;"
        "p = P(seed=3, defect_rate=1.0).panel(5);"
        "sys.stdout.buffer.write(p.image.tobytes() + p.truth.tobytes())"
    )
    root = Path(__file__).parent.parent
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=root)
    here = DEFECTIVE.panel(5)
    assert other.stdout == here.image.tobytes() + here.truth.tobytes()


def test_seed_and_number_change_the_panel():
    """Neither the seed nor the number is ignored."""
    panel = DEFECTIVE.panel(0)
    assert not np.array_equal(panel.image, DEFECTIVE.panel(1).image)
    assert not np.array_equal(panel.image, replace(DEFECTIVE, seed=4).panel(0).image)


def test_classes_come_at_the_asked_rate():
    """The share of defective panels is `defect_rate`, and every defect class gets an equal part of it."""
    simulator = replace(SMALL, defect_rate=0.5)
    names = [simulator.panel(n).class_name for n in range(1000)]
    counts = {name: names.count(name) for name in CLASSES}
    assert sum(counts.values()) == 1000
    assert 440 < counts["normal"] < 560
    assert all(65 < counts[name] < 140 for name in CLASSES[1:])


def test_a_defect_rate_of_zero_means_none():
    """Normal panels have an empty truth."""
    panels = [replace(SMALL, defect_rate=0.0).panel(n) for n in range(50)]
    assert {panel.class_name for panel in panels} == {"normal"}
    assert not any(panel.truth.any() for panel in panels)


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (768, 1024)])
def test_truth_holds_exactly_the_panels_class(size):
    """Truth pixels carry the index of the panel's class and nothing else, and a defect is never empty."""
    simulator = replace(DEFECTIVE, size=size)
    for n in range(60 if size[0] <= 256 else 20):
        panel = simulator.panel(n)
        marked = panel.truth[panel.truth > 0]
        assert set(marked.tolist()) == {CLASSES.index(panel.class_name)}
        assert 10 <= marked.size < 0.2 * panel.truth.size


def test_only_the_truth_and_its_rim_differ_from_the_defect_free_twin():
    """The defect changes nothing farther from its truth than its soft rim and the blur of the lens: 4 px."""
    for n in range(150):
        panel, twin = DEFECTIVE.panel(n), replace(DEFECTIVE, defect_rate=0.0).panel(n)
        near = cv2.dilate(panel.truth, np.ones((9, 9), np.uint8)) > 0
        if panel.class_name in ("horizontal", "vertical"):  # a streak fades in over 12 px at its ends
            near = cv2.dilate(panel.truth, np.ones((25, 25), np.uint8)) > 0
        assert not difference(panel, twin)[~near].any(), (n, panel.class_name)


def test_every_defect_at_full_contrast_can_be_seen():
    """Inside the truth the picture differs from its twin by more than the default noise."""
    seen = {}
    for n in range(150):
        seen.setdefault(DEFECTIVE.panel(n).class_name, []).append(visibility(DEFECTIVE, n))
    assert set(seen) == set(CLASSES[1:])
    for name, changes in seen.items():
        assert min(changes) > 2 * DEFECTIVE.noise, name
        assert np.median(changes) > 20, name


def test_the_truth_claims_no_untouched_pixels():
    """At least 93 % of the truth pixels changed by more than 12 grey levels: it is not drawn generously."""
    quiet, changed, claimed = replace(DEFECTIVE, noise=0.0), 0, 0
    for n in range(100):
        panel, twin = quiet.panel(n), replace(quiet, defect_rate=0.0).panel(n)
        changed += int((np.abs(difference(panel, twin))[panel.truth > 0] > 12).sum())
        claimed += int((panel.truth > 0).sum())
    assert changed > 0.93 * claimed


def test_contrast_scales_the_change_and_leaves_the_truth():
    """A third of the contrast is about a third of the grey level change, at the same pixels."""
    faint = replace(DEFECTIVE, contrast=0.3)
    for n in range(30):
        assert np.array_equal(faint.panel(n).truth, DEFECTIVE.panel(n).truth)
    ratios = [visibility(faint, n) / visibility(DEFECTIVE, n) for n in range(30)]
    assert np.mean(ratios) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("sigma", [1.5, 3.0, 10.0])
def test_noise_has_the_asked_sigma(sigma):
    """The difference to the noiseless twin is Gaussian with the asked standard deviation."""
    normal = PanelSimulator(defect_rate=0.0)
    grain = difference(replace(normal, noise=sigma).panel(0), replace(normal, noise=0.0).panel(0))
    assert grain.std() == pytest.approx(sigma, rel=0.06)
    assert grain.mean() == pytest.approx(0, abs=0.15)
    assert (np.abs(grain) < sigma + 0.5).mean() == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("size", [(1024, 768), (300, 2000), (64, 515)])
def test_large_and_oblong_panels_have_the_asked_shape(size):
    """Any size is rendered sharp to its last pixel: no block of it is flat or left unwritten."""
    panel = PanelSimulator(size=size).panel(0)
    assert panel.image.shape == panel.truth.shape == size
    assert panel.image.dtype == panel.truth.dtype == np.uint8
    corners = [panel.image[y, x] for y in (slice(0, 64), slice(-64, None)) for x in (slice(0, 64), slice(-64, None))]
    assert all(corner.std() > 15 and corner.min() > 10 for corner in corners)


def test_a_large_panel_made_of_blocks_has_no_seams(monkeypatch):
    """How many blocks a panel is warped in shows nowhere, but for the rounding of the warp."""
    simulator = PanelSimulator(size=(500, 450), defect_rate=0.0, noise=0.0)
    whole = simulator.panel(1)
    monkeypatch.setattr(panel_pattern, "_BLOCK", 190)
    assert np.abs(difference(whole, simulator.panel(1))).max() <= 6


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("seed", -1),
        ("size", (32, 256)),
        ("size", (256, 20000)),
        ("size", (256,)),
        ("defect_rate", -0.1),
        ("defect_rate", 1.1),
        ("defect_rate", float("nan")),
        ("contrast", 0.0),
        ("contrast", 3.0),
        ("noise", -1.0),
        ("noise", float("nan")),
    ],
)
def test_a_bad_parameter_is_refused_by_name(parameter, value):
    """The message is one line that names the parameter and says what to give."""
    with pytest.raises(SourceError, match=rf"^{parameter} is .*; give .*$"):
        PanelSimulator(**{parameter: value})


def test_panels_are_counted_from_zero():
    """A negative panel number is refused."""
    with pytest.raises(SourceError, match="counted from 0"):
        PanelSimulator().panel(-1)


def test_a_rendered_folder_reads_back_as_the_same_panels(tmp_path):
    """Images and labels survive the round trip through PNG, and the classes stand beside them in order."""
    render_folder(SMALL, tmp_path / "set", 4)
    assert (tmp_path / "set/classes.txt").read_text().split() == list(CLASSES)
    names = [f"{n:06d}.png" for n in range(4)]
    for kind in ("image", "label"):
        assert sorted(path.name for path in (tmp_path / "set" / kind).iterdir()) == names
    for n, name in enumerate(names):
        panel = SMALL.panel(n)
        image = cv2.imread(str(tmp_path / "set/image" / name), cv2.IMREAD_UNCHANGED)
        label = cv2.imread(str(tmp_path / "set/label" / name), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(image, panel.image)
        assert np.array_equal(label, panel.truth)


def test_a_folder_that_holds_images_is_refused(tmp_path):
    """Panels of two renderings never mix in one data set."""
    render_folder(SMALL, tmp_path, 2)
    with pytest.raises(SourceError, match="not empty"):
        render_folder(SMALL, tmp_path, 1)


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path):
    """A file in the place of the folder is reported in one line that says what to check."""
    (tmp_path / "set").write_text("a file")
    with pytest.raises(DiskError, match="cannot write panels"):
        render_folder(SMALL, tmp_path / "set", 1)


def test_an_empty_data_set_is_refused(tmp_path):
    """Asking for no panels is a mistake, not an empty folder."""
    with pytest.raises(SourceError, match="at least 1"):
        render_folder(SMALL, tmp_path, 0)
