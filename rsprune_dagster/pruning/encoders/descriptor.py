"""The default encoder: a vector of colour and texture statistics from fixed filters, without weights or download.

Four kinds of numbers, each pooled over the whole tile and over the filters' directions, so that a quarter turn or a
flip of the tile changes nothing but rounding:

1. *Colour*: a soft joint histogram of three opponent channels (van de Sande, Gevers, Snoek: "Evaluating Color
   Descriptors for Object and Scene Recognition", PAMI 2010), square-rooted, which makes the dot product of two
   histograms their Bhattacharyya coefficient.
2. *Colour statistics*: quantiles, spreads, skewness and correlations of the opponent channels.
3. *Texture*: statistics of the modulus of a bank of Gabor filters (Manjunath, Ma: "Texture Features for Browsing and
   Retrieval of Image Data", PAMI 1996) on a pyramid; and of the same bank on the logarithm of that modulus, the second
   order of a scattering transform (Bruna, Mallat: "Invariant Scattering Convolution Networks", PAMI 2013).

4. *Patterns*: histograms of rotation-invariant uniform binary patterns (Ojala, Pietikainen, Maenpaa: "Multiresolution
   Gray-Scale and Rotation Invariant Texture Classification with Local Binary Patterns", PAMI 2002) on three levels of
   the luma, square-rooted like the colours.

Statistics are standardised with constants (`descriptor_constants.py`), not with the corpus, so that a tile's vector
does not depend on other tiles.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.nn import functional

from rsprune_dagster.pruning.encoders.descriptor_constants import COLOUR_WEIGHT, PATTERN_WEIGHT, STANDARD

NAME = "descriptor"
WORKING_SIZE_PX = 64
"""Input edge, independent of image_size_px: the coarsest of four pyramid levels is two wavelengths wide."""

N_LEVELS = 4
N_DIRECTIONS = 4
N_PATTERN_LEVELS = 3
N_PATTERNS = 10
LUMA_BINS, CHROMA_BINS = 7, 5
CHROMA_GAIN = 10.0
"""Nadir imagery has low chroma: tanh(10 x) spreads the range of +-0.1 over most of the bins."""

FLOOR = 0.002
"""Half a grey level of 255: weaker texture is rounding of the 8-bit source."""

CHROMA_LEVELS = (1, 2)
"""JPEG stores chroma at half the resolution, so the finest level is skipped for chroma."""

SLICE_TILES = 16
"""Tiles processed at a time, so that their filter responses stay in the processor's cache."""

Blocks = list[tuple[str, torch.Tensor]]
"""Named groups of statistics, each (n, number of statistics)."""


class Descriptor(nn.Module):
    """Opponent channels (n, 3, h, w), h and w WORKING_SIZE_PX, to features (n, DIMENSION), not yet of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.bank: torch.Tensor
        self.centre: torch.Tensor
        self.spread: torch.Tensor
        self.register_buffer("bank", gabor_bank())
        self.pool = single_threaded_pool(torch.get_num_threads())
        centre = [value for centres, _ in STANDARD.values() for value in centres]
        spread = [value for _, spreads in STANDARD.values() for value in spreads]
        self.register_buffer("centre", torch.tensor(centre))
        self.register_buffer("spread", torch.tensor(spread))

    def forward(self, channels: torch.Tensor) -> torch.Tensor:
        """Features of all tiles, a slice at a time."""
        parts = torch.split(channels, SLICE_TILES)
        described = map(self.describe, parts) if channels.is_cuda else self.pool.map(self.describe, parts)
        return torch.cat(list(described))

    @torch.inference_mode()
    def describe(self, channels: torch.Tensor) -> torch.Tensor:
        """Histogram and standardised statistics, concatenated."""
        statistics = torch.cat([block for _, block in self.statistics(channels)], 1)
        histogram = colour_histogram(functional.avg_pool2d(channels, 2)).sqrt()
        patterns = pattern_histograms(channels[:, 0]).sqrt()
        standard = (statistics - self.centre) / self.spread
        return torch.cat([COLOUR_WEIGHT * histogram, PATTERN_WEIGHT * patterns, standard], 1)

    def statistics(self, channels: torch.Tensor) -> Blocks:
        """All statistics of opponent channels (n, 3, h, w), in the order of the constants."""
        blocks = colour_statistics(channels)
        finer: torch.Tensor | None = None
        for level in range(N_LEVELS):
            seen = channels if level in CHROMA_LEVELS else channels[:, :1]
            energy = energies(seen, self.bank)
            blocks += [(f"{name}_{level}", block) for name, block in self.texture(seen, energy, finer)]
            finer = functional.avg_pool2d(log_of(energy[:, 0].mean(1)), 2)
            channels = functional.avg_pool2d(channels, 2)
        return blocks

    def texture(self, channels: torch.Tensor, energy: torch.Tensor, finer: torch.Tensor | None) -> Blocks:
        """Texture statistics of one level: channels (n, c, h, w), energies (n, c, directions, h, w), finer log
        energy."""
        log_energy = log_of(energy.mean(2))
        luma = log_energy[:, 0]
        shape = [spread_of(luma), skewness(luma, 0.1), correlation(luma, channels[:, 0])]
        if finer is not None:
            shape.append(correlation(finer, luma))
        return [
            ("strength", torch.cat([log_energy.mean((2, 3)), log_of(energy.mean((2, 3, 4)))], 1)),
            ("shape", torch.stack(shape, 1)),
            ("anisotropy", anisotropy(energy[:, 0])),
            ("second_order", self.second_order(luma)),
        ]

    def second_order(self, log_energy: torch.Tensor) -> torch.Tensor:
        """log of the mean modulus of the bank on log energies (n, h, w), at coarser levels of them: (n, 0 to 3)."""
        found: list[torch.Tensor] = []
        while log_energy.shape[1] >= 16 and len(found) < 3:
            log_energy = functional.avg_pool2d(log_energy, 2)
            found.append((energies(log_energy[:, None], self.bank).mean((1, 2, 3, 4)) + 0.02).log())
        return torch.stack(found, 1) if found else log_energy.new_empty((len(log_energy), 0))


def single_threaded_pool(n_threads: int) -> ThreadPoolExecutor:
    """A thread pool in which each torch operation is single-threaded.

    The operations are too small to parallelize (30 times slower on two busy cores), the slices are not; and results do
    not depend on the number of threads.
    """
    return ThreadPoolExecutor(n_threads, "descriptor", initializer=torch.set_num_threads, initargs=(1,))


def opponent(batch: torch.Tensor) -> torch.Tensor:
    """uint8 RGB (n, 3, h, w) to luma in [0, 1], red-green and yellow-blue in [-0.5, 0.5], float32."""
    red, green, blue = (batch.float() / 255).unbind(1)
    return torch.stack([(red + green + blue) / 3, (red - green) / 2, (red + green - 2 * blue) / 4], 1)


def gabor_bank() -> torch.Tensor:
    """(2 * N_DIRECTIONS, 1, 7, 7): cosine and sine waves of 4 px under a Gaussian of 1.6 px; cosines have mean 0."""
    steps = torch.arange(-3.0, 4.0)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * 1.6**2))
    window = window / window.sum()
    pairs = []
    for k in range(N_DIRECTIONS):
        phase = 2 * math.pi / 4 * (x * math.cos(math.pi * k / N_DIRECTIONS) + y * math.sin(math.pi * k / N_DIRECTIONS))
        even = window * phase.cos()
        pairs += [even - window * even.sum(), window * phase.sin()]
    return torch.stack(pairs).unsqueeze(1)


def energies(channels: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Modulus of the bank's complex response: channels (n, c, h, w) to (n, c, directions, h, w)."""
    n, c, h, w = channels.shape
    margin = bank.shape[-1] // 2
    padded = functional.pad(channels.reshape(n * c, 1, h, w), (margin,) * 4, mode="reflect")
    response = functional.conv2d(padded, bank).view(n, c, bank.shape[0] // 2, 2, h, w)
    return (response.square().sum(3) + 1e-10).sqrt()


def colour_histogram(channels: torch.Tensor) -> torch.Tensor:
    """Soft joint histogram of opponent channels (n, 3, h, w): (n, LUMA_BINS * CHROMA_BINS**2), each row sums to 1."""
    luma, chroma = channels[:, 0].flatten(1), 0.5 + 0.5 * torch.tanh(CHROMA_GAIN * channels[:, 1:].flatten(2))
    red, blue = soft_bins(chroma[:, 0], CHROMA_BINS), soft_bins(chroma[:, 1], CHROMA_BINS)
    both = (red.unsqueeze(2) * blue.unsqueeze(1)).flatten(1, 2)
    counts = torch.bmm(soft_bins(luma, LUMA_BINS), both.transpose(1, 2))
    return counts.flatten(1) / luma.shape[1]


def pattern_histograms(luma: torch.Tensor) -> torch.Tensor:
    """Histograms of the binary patterns of luma (n, h, w), level after level: (n, N_PATTERN_LEVELS * N_PATTERNS)."""
    found = []
    for _ in range(N_PATTERN_LEVELS):
        codes = binary_patterns(luma).flatten(1)
        first = N_PATTERNS * torch.arange(len(codes), device=codes.device).unsqueeze(1)
        counts = torch.bincount((codes + first).flatten(), minlength=N_PATTERNS * len(codes))
        found.append(counts.view(-1, N_PATTERNS).float() / codes.shape[1])
        luma = functional.avg_pool2d(luma, 2)
    return torch.cat(found, 1)


def binary_patterns(luma: torch.Tensor) -> torch.Tensor:
    """The pattern of each inner pixel of (n, h, w): the number of brighter neighbours, 0 to 8, if these are contiguous,
    else 9. Brighter means by more than FLOOR, which no difference of 8-bit grey levels equals at any level, so that
    rounding has no effect.
    """
    h, w = luma.shape[1] - 2, luma.shape[2] - 2
    around = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    threshold = luma[:, 1:-1, 1:-1] + FLOOR
    brighter = torch.stack([luma[:, y : y + h, x : x + w] > threshold for y, x in around], 1)
    n_changes = (brighter ^ brighter.roll(1, 1)).sum(1, dtype=torch.uint8)
    return torch.where(n_changes <= 2, brighter.sum(1), 9)


def soft_bins(values: torch.Tensor, n_bins: int) -> torch.Tensor:
    """Soft histogram weights (n, n_bins, p) of values (n, p) in [0, 1]. Each value is split linearly between its two
    nearest bin centres, so its weights sum to 1."""
    centres = torch.arange(n_bins, device=values.device).view(1, n_bins, 1)
    return (1 - (values.clamp(0, 1).unsqueeze(1) * (n_bins - 1) - centres).abs()).clamp_min(0)


def colour_statistics(channels: torch.Tensor) -> Blocks:
    """Mean, quantiles, log spread, skewness and correlations of opponent channels (n, 3, h, w)."""
    luma, red, blue = channels.unbind(1)
    sorted_values = functional.avg_pool2d(channels, 4).flatten(2).sort(2).values
    n = sorted_values.shape[2]
    quantiles = sorted_values[:, :, [n // 10, n // 2, n - 1 - n // 10]].flatten(1)
    pairs = [correlation(luma, red), correlation(luma, blue), correlation(red, blue)]
    return [
        ("mean", channels.mean((2, 3))),
        ("quantiles", quantiles),
        ("log_spread", torch.stack([(spread_of(c) + FLOOR).log() for c in (luma, red, blue)], 1)),
        ("skewness", torch.stack([skewness(c, 0.01) for c in (luma, red, blue)], 1)),
        ("correlation", torch.stack(pairs, 1)),
    ]


def anisotropy(energy: torch.Tensor) -> torch.Tensor:
    """Anisotropy of the energies (n, 4, h, w) over directions: of the tile's mean, then the mean over pixels; (n, 4).

    The moduli of the Fourier transform over directions do not change when a quarter turn or a flip permutes those.
    """
    whole = energy.mean((2, 3))
    return torch.cat([uneven(whole, 0.001), uneven(energy, 0.004).mean((2, 3))], 1)


def uneven(energy: torch.Tensor, floor: float) -> torch.Tensor:
    """Moduli of the Fourier transform over four directions of their shares, (n, 4, ...) to (n, 2, ...)."""
    a, b, c, d = (energy / (energy.sum(1, keepdim=True) + floor)).unbind(1)
    first = ((a - c).square() + (b - d).square() + 1e-12).sqrt()
    return torch.stack([first, ((a + c) - (b + d)).abs()], 1)


def log_of(energy: torch.Tensor) -> torch.Tensor:
    """log of energies, clipped below at FLOOR."""
    return (energy + FLOOR).log()


def spread_of(values: torch.Tensor) -> torch.Tensor:
    """Standard deviation over the pixels of (n, h, w)."""
    return ((values - values.mean((1, 2), keepdim=True)).square().mean((1, 2)) + 1e-10).sqrt()


def skewness(values: torch.Tensor, floor: float) -> torch.Tensor:
    """Third standardised moment over the pixels of (n, h, w), within [-3, 3]; `floor` is added to the spread."""
    centred = values - values.mean((1, 2), keepdim=True)
    return ((centred * centred * centred).mean((1, 2)) / (spread_of(values) + floor) ** 3).clamp(-3, 3)


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Correlation over the pixels of two maps (n, h, w), shrunk to 0 if one of them hardly varies."""
    a, b = a - a.mean((1, 2), keepdim=True), b - b.mean((1, 2), keepdim=True)
    scale = (spread_of(a) + 0.01) * (spread_of(b) + 0.01)
    return (a * b).mean((1, 2)) / scale


DIMENSION = (
    LUMA_BINS * CHROMA_BINS**2 + N_PATTERN_LEVELS * N_PATTERNS + sum(len(centres) for centres, _ in STANDARD.values())
)
