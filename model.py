"""Models of Jampani et al., "Superpixel Sampling Networks", ECCV 2018 (arXiv 1807.10174).

Weight files depend on the module names, which come from the published PyTorch weights.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.bands import Rows, extract_band, extract_in_bands
from lib.network.convolution import PADDING_MODES, ConvBlock, InputConvBlock, convolve_concatenation
from lib.runtime.device import full_precision
from lib.slic import DISTANCES, FeatureRows, SoftAssignment, slic, slic_label_rows, slic_labels
from lib.slic.grid import check_devices

N_BASE_CHANNELS = 5  # L, a, b, y, x: see lib/network/inputs.py
N_MID_CHANNELS = 64  # of the inner convolutions, as in the paper
N_FLOW_CHANNELS = 4  # fwd_dy, fwd_dx, bwd_dy, bwd_dx: see lib/optflow/archive.py


class FeatureExtractor(nn.Module):
    """Compute per-pixel features from three scales of convolutions.

    `n_mid_channels` are the channels of the inner convolutions. With `concat_input`, the input channels
    follow the learned features. All convolutions have the `padding_mode`, see `SSNModel`.
    """

    def __init__(
        self,
        n_in_channels: int,
        n_out_features: int,
        n_mid_channels: int = N_MID_CHANNELS,
        *,
        concat_input: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
        super().__init__()
        self.concat_input = concat_input
        self.scale1 = nn.Sequential(
            InputConvBlock(n_in_channels, n_mid_channels, padding_mode),
            ConvBlock(n_mid_channels, n_mid_channels, padding_mode),
        )
        self.scale2 = nn.Sequential(
            nn.MaxPool2d(3, stride=2, padding=1),
            ConvBlock(n_mid_channels, n_mid_channels, padding_mode),
            ConvBlock(n_mid_channels, n_mid_channels, padding_mode),
        )
        self.scale3 = nn.Sequential(
            nn.MaxPool2d(3, stride=2, padding=1),
            ConvBlock(n_mid_channels, n_mid_channels, padding_mode),
            ConvBlock(n_mid_channels, n_mid_channels, padding_mode),
        )
        n_concatenated = n_in_channels + 3 * n_mid_channels
        self.output_conv = nn.Sequential(
            nn.Conv2d(n_concatenated, n_out_features, 3, padding=1, padding_mode=padding_mode)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in_channels, H, W) to (B, n_out_features [+ n_in_channels], H, W), float dtype of `x`."""
        if not (self.training or torch.is_grad_enabled()):
            return extract_in_bands(self, x)  # the same result with little memory
        scale1 = self.scale1(x)
        scale2 = self.scale2(scale1)
        scale3 = self.scale3(scale2)
        scales = [x, scale1, _resize(scale2, x), _resize(scale3, x)]
        learned = convolve_concatenation(scales, self.output_conv[0])  # output_conv(torch.cat(scales, dim=1))
        return torch.cat([learned, x], dim=1) if self.concat_input else learned


def _resize(scale: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(scale, size=x.shape[2:], mode="bilinear", align_corners=False)


class SSNOutput(NamedTuple):
    """Result of a model."""

    assignment: SoftAssignment
    labels: Tensor  # (B, H, W), int64
    pixel_features: Tensor  # (B, C, H, W)

    @property
    def spixel_features(self) -> Tensor:
        """Mean pixel features of each superpixel, weighted by affinity, (B, C, S)."""
        return self.assignment.spixel_means(self.pixel_features)


class LearnedFeatures(NamedTuple):
    """Learned features of pixels; see `SuperpixelModel.encode`."""

    base: Tensor | None = None  # (B, n_learned_features + 5, H, W): learned, then the channels that were read
    extra: Tensor | None = None  # (B, n_extra_features, H, W), from extra channels


class SuperpixelModel(nn.Module):
    """Common part of the models: encode the channels, assemble the pixel features, cluster them.

    Subclasses define `encode` and list in `config_names` the arguments of their constructor, which are
    attributes of the same names.
    """

    config_names: tuple[str, ...] = ()
    n_extra_channels = 0

    def __init__(
        self,
        *,
        n_iter: int,
        distance: str = "euclidean",
        n_learned_features: int = 0,
        sees_position: bool = False,
    ) -> None:
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
        super().__init__()
        self.n_iter = n_iter
        self.distance = distance
        self.n_learned_features = n_learned_features
        self.sees_position = sees_position

    def forward(self, channels: Tensor, n_spixels: int, *, n_iter: int | None = None) -> SSNOutput:
        """Segment scaled channels (B, 5 + n_extra_channels, H, W); see `lib.network.inputs.input_channels`.

        `n_iter` overrides the model's number of iterations. Only a network in training mode may use TF32.
        Raises a ValueError if the channels are on another device than the model.
        """
        check_devices(channels=channels, model=next(self.parameters(), None))
        with nullcontext() if self.training else full_precision():
            features = self.pixel_features(channels)
        n_iter = self.n_iter if n_iter is None else n_iter
        return cluster(features, n_spixels, n_iter=n_iter, distance=self.distance)

    def encode(
        self, channels: Tensor, known: LearnedFeatures | None = None, *, band: Rows | None = None
    ) -> LearnedFeatures:
        """Compute the learned features of scaled channels [L, a, b, y, x, extra].

        `known` are features of the same images computed with another position scale; parts that do not depend
        on the position are reused. With a `band` of an image, `channels` are those of its context.
        """
        raise NotImplementedError

    def assemble(self, learned: LearnedFeatures, channels: Tensor) -> Tensor:
        """Stack the pixel features to cluster, (B, C, H, W): [learned base, L, a, b, y, x, learned extra]."""
        base = channels[:, :N_BASE_CHANNELS] if learned.base is None else learned.base
        features = base if learned.extra is None else torch.cat([base, learned.extra], dim=1)
        if self.sees_position:
            return features
        # The network read zeros in place of the position.
        before, after = (
            features[:, : self.position_channels.start],
            features[:, self.position_channels.stop :],
        )
        return torch.cat([before, channels[:, N_BASE_CHANNELS - 2 : N_BASE_CHANNELS], after], dim=1)

    def pixel_features(self, channels: Tensor) -> Tensor:
        """Compute the pixel features to cluster, (B, C, H, W)."""
        return self.assemble(self.encode(channels), channels)

    @property
    def position_channels(self) -> slice:
        """Channels of the pixel features that hold the position."""
        return slice(self.n_learned_features + 3, self.n_learned_features + N_BASE_CHANNELS)

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments, as stored in weight files."""
        return {name: getattr(self, name) for name in self.config_names}

    def compile_network(self) -> None:
        """Compile the networks in place with `torch.compile`."""
        for network in self.children():
            network.compile()


class SSNModel(SuperpixelModel):
    """Base model: superpixels from colour and position.

    Parameters
    ----------
    n_learned_features : int
        Learned features per pixel. They are clustered together with the five input channels.
    n_iter : int
        Number of clustering iterations.
    distance : {"euclidean", "squared"}
        Distance used in the clustering. Other values raise a ValueError.
    sees_position : bool
        Let the network read the position and the colour, as in the paper. If False, the network reads zeros
        instead of the position. The clustering uses the position in either case.
    padding_mode : {"zeros", "replicate"}
        Values that convolutions read beyond the border of the image: zeros as in the paper, or the nearest
        pixel's. Other values raise a ValueError.
    n_mid_channels : int
        Channels of the inner convolutions, 64 in the paper. The time of the network grows a little more than
        in proportion.
    """

    config_names = (
        "n_learned_features",
        "n_iter",
        "distance",
        "sees_position",
        "padding_mode",
        "n_mid_channels",
    )

    def __init__(
        self,
        n_learned_features: int = 15,
        *,
        n_iter: int = 5,
        distance: str = "euclidean",
        sees_position: bool = True,
        padding_mode: str = "zeros",
        n_mid_channels: int = N_MID_CHANNELS,
    ) -> None:
        super().__init__(
            n_iter=n_iter,
            distance=distance,
            n_learned_features=n_learned_features,
            sees_position=sees_position,
        )
        self.padding_mode = padding_mode
        self.n_mid_channels = n_mid_channels
        self.feature_extract = FeatureExtractor(
            N_BASE_CHANNELS, n_learned_features, n_mid_channels, padding_mode=padding_mode
        )

    def encode(
        self, channels: Tensor, known: LearnedFeatures | None = None, *, band: Rows | None = None
    ) -> LearnedFeatures:
        if known is not None and not self.sees_position:
            return known
        return LearnedFeatures(_encode_base(self.feature_extract, channels, self.sees_position, band))


class CompositeSSNModel(SuperpixelModel):
    """Frozen base model and a second network for any extra channels, such as optical flow.

    The features of both networks are clustered together. The base network always stays in evaluation mode, so
    training changes neither its weights nor its batch norm statistics.

    Parameters
    ----------
    n_learned_features, n_extra_features : int
        Learned features per pixel from the base network and from the second network.
    n_extra_channels : int
        Number of extra channels. Optical flow to the next and to the previous frame has four.
    n_iter, distance, sees_position, padding_mode, n_mid_channels
        See `SSNModel`. Both networks have the same padding; `n_mid_channels` are those of the base network,
        the second network has 32.
    """

    config_names = (*SSNModel.config_names, "n_extra_features", "n_extra_channels")

    def __init__(
        self,
        n_learned_features: int = 15,
        n_extra_features: int = 10,
        *,
        n_extra_channels: int = N_FLOW_CHANNELS,
        n_iter: int = 5,
        distance: str = "euclidean",
        sees_position: bool = True,
        padding_mode: str = "zeros",
        n_mid_channels: int = N_MID_CHANNELS,
    ) -> None:
        settings = {"n_learned_features": n_learned_features, "sees_position": sees_position}
        super().__init__(n_iter=n_iter, distance=distance, **settings)
        self.n_extra_features = n_extra_features
        self.n_extra_channels = n_extra_channels
        self.padding_mode = padding_mode
        self.n_mid_channels = n_mid_channels
        self.feature_extract_color = FeatureExtractor(
            N_BASE_CHANNELS, n_learned_features, n_mid_channels, padding_mode=padding_mode
        )
        self.feature_extract_color.requires_grad_(False).eval()
        self.feature_extract_optflow = FeatureExtractor(
            n_extra_channels,
            n_extra_features,
            n_mid_channels=32,
            concat_input=False,
            padding_mode=padding_mode,
        )

    @classmethod
    def on_top_of(cls, base: SSNModel, n_extra_features: int = 10, *, n_extra_channels: int) -> Self:
        """Build a composite from a copy of a base model and its settings; the second network is untrained."""
        composite = cls(n_extra_features=n_extra_features, n_extra_channels=n_extra_channels, **base.config())
        composite.feature_extract_color.load_state_dict(base.feature_extract.state_dict())
        return composite

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the second network; the base network stays in evaluation mode."""
        super().train(mode)
        self.feature_extract_color.eval()
        return self

    def encode(
        self, channels: Tensor, known: LearnedFeatures | None = None, *, band: Rows | None = None
    ) -> LearnedFeatures:
        if known is not None and not self.sees_position:
            return known
        with torch.no_grad():
            base = _encode_base(self.feature_extract_color, channels, self.sees_position, band)
        if known is not None:
            return LearnedFeatures(base, known.extra)
        extra = _extract(self.feature_extract_optflow, channels[:, N_BASE_CHANNELS:], band)
        return LearnedFeatures(base, extra)


class SSNPix(SuperpixelModel):
    """Model without a network (SSN_pix in the paper): clusters the scaled colour and position directly."""

    config_names = ("n_iter",)

    def __init__(self, *, n_iter: int = 5) -> None:
        super().__init__(n_iter=n_iter)

    def encode(
        self, channels: Tensor, known: LearnedFeatures | None = None, *, band: Rows | None = None
    ) -> LearnedFeatures:
        return LearnedFeatures()


def without_position(channels: Tensor) -> Tensor:
    """Return a copy of channels (B, 5 + n_extra_channels, H, W) with the position set to zero."""
    channels = channels.clone()  # unlike a concatenation, keeps the channels-last memory format
    channels[:, N_BASE_CHANNELS - 2 : N_BASE_CHANNELS] = 0
    return channels


def _encode_base(
    extractor: FeatureExtractor, channels: Tensor, sees_position: bool, band: Rows | None
) -> Tensor:
    labyx = channels[:, :N_BASE_CHANNELS]
    return _extract(extractor, labyx if sees_position else without_position(labyx), band)


def _extract(extractor: FeatureExtractor, x: Tensor, band: Rows | None) -> Tensor:
    return extractor(x) if band is None else extract_band(extractor, x, band)


def cluster(
    pixel_features: Tensor, n_spixels: int, *, n_iter: int, distance: str, mask: Tensor | None = None
) -> SSNOutput:
    """Cluster pixel features (B, C, H, W); see `slic`.

    Autocast and TF32 are off, so that labels do not depend on the caller's settings.
    """
    with full_precision(), torch.autocast(pixel_features.device.type, enabled=False):
        assignment = slic(pixel_features, n_spixels, n_iter=n_iter, distance=distance, mask=mask)
        return SSNOutput(assignment, assignment.labels(), pixel_features)


def cluster_labels(
    pixel_features: Tensor, n_spixels: int, *, n_iter: int, distance: str, mask: Tensor | None = None
) -> Tensor:
    """Return only the labels of `cluster`, (B, H, W) int64; see `slic_labels`."""
    with full_precision(), torch.autocast(pixel_features.device.type, enabled=False):
        return slic_labels(pixel_features, n_spixels, n_iter=n_iter, distance=distance, mask=mask)


def cluster_label_rows(
    pixel_features: FeatureRows, n_spixels: int, *, n_iter: int, distance: str, mask: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield the rows of `cluster_labels` of an image whose features are not in memory; `slic_label_rows`."""
    with full_precision(), torch.autocast(pixel_features.device.type, enabled=False):
        yield from slic_label_rows(pixel_features, n_spixels, n_iter=n_iter, distance=distance, mask=mask)
