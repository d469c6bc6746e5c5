"""A viewer for the web, in a browser, on a study of a PACS: OHIF from npm in headless Chromium, the gateway, Orthanc.

The page is of another origin than the gateway. What the viewport shows is compared with what pydicom decodes.
"""

from __future__ import annotations

import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, pixel_array

pytestmark = pytest.mark.interop

NAMES = (
    "MR_small.dcm",  # uncompressed
    "693_J2KI.dcm",  # JPEG 2000, which the viewer decompresses
    "SC_rgb_rle_2frame.dcm",  # in colour
)
PATIENTS = ("CompressedSamples, MR1", "CQ500-CT-310", "Lestrade, G")
MARGIN = 1 / 7  # of the image on each side, where the viewport has letters and buttons over it
LEAST_CORRELATION = 0.99  # the viewport scales in its own way
MOST_CORRELATION_OF_OTHERS = 0.5
LARGEST_MEAN_DIFFERENCE = 4.0  # of 255


def configuration(port: int, pacs: Any, *, page: int) -> str:
    return f"""
        [network.n.http]
        bind_address = "127.0.0.1"
        bind_port = {port}
        [pipelines.web]
        networks = ["n"]
        endpoints = ["web"]
        backends = ["pacs"]
        [endpoints.web]
        service = "dicomweb"
        options.path_prefix = "/dicom-web"
        options.allow_origins = ["http://127.0.0.1:{page}"]
        [backends.pacs]
        service = "dicom_scu"
        options = {{ aet = "{pacs.ae_title}", host = "127.0.0.1", port = {pacs.port} }}
    """


def read(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd values in the files are none of our business
        return pydicom.dcmread(path)


def decoded(dataset: Dataset, size: tuple[int, int]) -> np.ndarray:
    """The first frame as large as (columns, rows), red, green and blue in 0 to 255."""
    pixels = pixel_array(dataset, index=0)
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)).astype("float32")
    values = Image.fromarray(apply_modality_lut(pixels, dataset).astype("float32"))
    center, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
    # PS3.3 §C.11.2.1.2.1, the LINEAR function
    values = (np.asarray(values.resize(size, Image.Resampling.BILINEAR)) - (center - 0.5)) / (width - 1) + 0.5
    return np.repeat(np.clip(values, 0, 1)[..., np.newaxis] * 255, 3, axis=2)


def compared(screenshot: Path, dataset: Dataset) -> tuple[float, float]:
    """Correlation and mean difference of the image, which is as large as fits into the viewport, in its middle."""
    shown = np.asarray(Image.open(screenshot).convert("RGB")).astype("float32")
    height, width, _ = shown.shape
    scale = min(height / dataset.Rows, width / dataset.Columns)
    columns, rows = round(dataset.Columns * scale), round(dataset.Rows * scale)
    top, left = (height - rows) // 2, (width - columns) // 2
    inner = np.s_[
        round(rows * MARGIN) : -round(rows * MARGIN), round(columns * MARGIN) : -round(columns * MARGIN)
    ]
    shown = shown[top : top + rows, left : left + columns][inner]
    if not shown.std():
        return 0.0, 255.0  # one colour all over
    expected = decoded(dataset, (columns, rows))[inner]
    correlation = np.corrcoef(shown.ravel(), expected.ravel())[0, 1]
    return float(correlation), float(np.abs(shown - expected).mean())


@pytest.mark.timeout(240)  # the first one has tens of megabytes to fetch
def test_a_viewer_shows_studies_of_a_pacs(
    require_peer, npm_viewer, run_node, start_orthanc, start_program, free_ports, pydicom_files, tmp_path
) -> None:
    chromium = require_peer("chromium")
    port, page = free_ports(2)
    pacs = start_orthanc()
    start_program(configuration(port, pacs, page=page), port)
    paths = {sample.path.name: sample.path for sample in pydicom_files}
    images = {name: read(paths[name]) for name in NAMES}
    for name in NAMES:
        urllib.request.urlopen(
            urllib.request.Request(
                f"http://127.0.0.1:{pacs.http_port}/instances", data=paths[name].read_bytes(), method="POST"
            )
        ).close()

    task = {
        "folder": str(npm_viewer),
        "port": page,
        "root": f"http://127.0.0.1:{port}/dicom-web",
        "chromium": chromium,
        "patients": PATIENTS,
        "studies": {image.StudyInstanceUID: str(tmp_path / f"{name}.png") for name, image in images.items()},
    }
    report = run_node("viewer.mjs", task)

    assert report["errors"] == report["failures"] == []
    assert {tuple(answer) for answer in report["answers"]} == {
        ("GET", asked, 200) for asked in ("studies", "series", "metadata", "frames")
    }
    assert report["stranger"] == "TypeError"  # as browsers say that a page may not
    for shown in NAMES:
        for name, image in images.items():
            correlation, difference = compared(tmp_path / f"{shown}.png", image)
            if name == shown:
                assert correlation > LEAST_CORRELATION, shown
                assert difference < LARGEST_MEAN_DIFFERENCE, shown
            else:
                assert correlation < MOST_CORRELATION_OF_OTHERS, (shown, name)


def test_a_blank_viewport_is_not_the_image(pydicom_files, tmp_path) -> None:
    image = read(next(sample.path for sample in pydicom_files if sample.path.name == "MR_small.dcm"))
    blank = tmp_path / "blank.png"
    Image.new("RGB", (675, 642)).save(blank)
    correlation, difference = compared(blank, image)
    assert correlation < MOST_CORRELATION_OF_OTHERS
    assert difference > LARGEST_MEAN_DIFFERENCE
