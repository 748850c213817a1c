"""A training in pictures: the loss, and the same noise denoised ever better."""

from collections.abc import Mapping, Sequence

import numpy as np

from rsprune_dagster.report import style
from rsprune_dagster.report.montage import Row, gallery

MAX_ROWS = 8


def loss_curve(losses: np.ndarray) -> bytes:
    """The loss against the images seen, on logarithmic axes. losses: (n, 2). Returns PNG bytes."""
    with style.look():
        drawing = style.figure(6.4, 3.2)
        axes = drawing.add_subplot()
        axes.plot(losses[:, 0], losses[:, 1], color=style.KEPT, linewidth=1.2)
        axes.set(xscale="log", yscale="log", xlabel="images seen", ylabel="mean squared error")
        axes.grid(axis="both")
        axes.set_title("The loss of the training")
        return style.png(drawing)


def samples_over_training(grids: Mapping[int, np.ndarray], scene_names: Sequence[str]) -> bytes:
    """A row per moment, a column per scene, always from the same noise. Returns JPEG bytes.

    grids: by images seen, (S, s, s, 3) uint8; of many moments eight are shown, the first and the last among them.
    """
    moments = sorted(grids)
    shown = [moments[index] for index in np.unique(np.linspace(0, len(moments) - 1, MAX_ROWS).round().astype(int))]
    captions = [name or "tiles" for name in scene_names]
    rows = [
        Row(f"{seen:,} images", list(grids[seen]), captions=captions if seen == shown[-1] else ()) for seen in shown
    ]
    return gallery(rows)


def samples_by_scene(samples: Mapping[str, np.ndarray]) -> bytes:
    """A row of samples per scene. Returns JPEG bytes. samples: (n, s, s, 3) uint8 each."""
    return gallery([Row(name or "tiles", list(images)) for name, images in samples.items()])
