"""The networks: a feature extractor, and the superpixel models that cluster what it makes.

Architecture of Jampani et al., "Superpixel Sampling Networks", ECCV 2018 (arXiv 1807.10174), with the
module names of the published PyTorch weights, which are therefore part of the weight files.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.bands import Rows, bands, resize_rows, split_rows, strip_rows
from lib.slic.iteration import DISTANCES, slic, slic_labels
from lib.slic.soft_assignment import SoftAssignment

N_BASE_CHANNELS = 5  # L, a, b, y, x: see lib/features.py
N_FLOW_CHANNELS = 4  # fwd_dy, fwd_dx, bwd_dy, bwd_dx: see lib/optflow.py


class SSNOutput(NamedTuple):
    """What the models return."""

    assignment: SoftAssignment
    labels: Tensor  # (B, H, W), int64
    pixel_features: Tensor  # (B, C, H, W)

    @property
    def spixel_features(self) -> Tensor:
        """Affinity-weighted mean of the pixel features of each superpixel, (B, C, S)."""
        return self.assignment.spixel_means(self.pixel_features)


class FeatureExtractor(nn.Module):
    """Per-pixel features from three scales of convolutions.

    Parameters
    ----------
    n_in_channels : int
        Channels of the input.
    n_out_features : int
        Learned features per pixel.
    n_mid_channels : int
        Channels of the inner convolutions.
    concat_input : bool
        Append the input channels after the learned features.
    """

    def __init__(
        self,
        n_in_channels: int,
        n_out_features: int,
        n_mid_channels: int = 64,
        *,
        concat_input: bool = True,
    ) -> None:
        super().__init__()
        self.concat_input = concat_input
        self.scale1 = nn.Sequential(
            _ConvBlock(n_in_channels, n_mid_channels, reads_input=True),
            _ConvBlock(n_mid_channels, n_mid_channels),
        )
        self.scale2 = _halving_scale(n_mid_channels)
        self.scale3 = _halving_scale(n_mid_channels)
        n_concatenated = n_in_channels + 3 * n_mid_channels
        self.output_conv = nn.Sequential(nn.Conv2d(n_concatenated, n_out_features, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in_channels, H, W) to (B, n_out_features [+ n_in_channels], H, W), float dtype of `x`.

        Without gradients, a large image goes through in bands of rows, so that the inner channels of a band
        alone are in memory. The result is that of the whole, but for rounding.
        """
        if self.training or torch.is_grad_enabled():
            return self._at_once(x)
        return self._in_bands(x)

    def _at_once(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        scale1 = self.scale1(x)
        scale2 = self.scale2(scale1)
        scales = scale1, scale2, self.scale3(scale2)
        features = self._output(x, scales, Rows(0, height, 0, height), top=0, height=height)
        return torch.cat([features, x], dim=1) if self.concat_input else features

    def _in_bands(self, x: Tensor) -> Tensor:
        batch, n_in_channels, height, width = x.shape
        n_learned = self.output_conv[0].out_channels
        n_features = n_learned + (n_in_channels if self.concat_input else 0)
        features = x.new_empty(batch, n_features, height, width)
        for band in bands(height, width):
            scale1 = self._scale1_in_strips(x[:, :, band.top : band.bottom])
            scale2 = self.scale2(scale1)
            scales = scale1, scale2, self.scale3(scale2)
            for strip in split_rows(band.first, band.last, strip_rows(x), 1, height):
                learned = self._output(x, scales, strip, top=band.top, height=height)
                features[:, :n_learned, strip.first : strip.last] = learned
        if self.concat_input:
            features[:, n_learned:] = x
        return features

    def _scale1_in_strips(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        if height <= strip_rows(x):
            return self.scale1(x)
        scale1 = None
        for strip in split_rows(0, height, strip_rows(x), 2, height):
            rows = self.scale1(x[:, :, strip.top : strip.bottom])
            if scale1 is None:
                size = (*rows.shape[:2], *x.shape[2:])
                scale1 = torch.empty(
                    size, dtype=rows.dtype, device=x.device, memory_format=torch.channels_last
                )
            scale1[:, :, strip.first : strip.last] = rows[:, :, strip.own]
        return scale1

    def _output(self, x: Tensor, scales: Sequence[Tensor], rows: Rows, *, top: int, height: int) -> Tensor:
        """Learned features of some rows of an image, of whose scales there are rows from `top` on.

        The output convolution of the concatenated scales is added up scale by scale, so that nothing of the
        size of the concatenation exists.
        """
        scale1, scale2, scale3 = scales
        conv, width = self.output_conv[0], x.shape[3]
        weights = conv.weight.split([x.shape[1], *3 * [scale1.shape[1]]], dim=1)
        features = _convolve_precisely(x[:, :, rows.top : rows.bottom], weights[0], conv.bias)
        features += F.conv2d(scale1[:, :, rows.top - top : rows.bottom - top], weights[1], padding=1)
        for factor, scale, weight in ((2, scale2, weights[2]), (4, scale3, weights[3])):
            resized = resize_rows(scale, width, rows, top=top, height=height, factor=factor)
            features += F.conv2d(resized, weight, padding=1)
        return features[:, :, rows.own]


class SSNModel(nn.Module):
    """The base model: superpixels from colour and position.

    Parameters
    ----------
    n_learned_features : int
        Learned features per pixel; the five input channels are clustered beside them.
    n_iter : int
        Iterations of the clustering.
    distance : {"euclidean", "squared"}
        Distance of the clustering.
    sees_position : bool
        Whether the network reads the position beside the colour, as in the paper; otherwise it reads zeros
        in its place. The position is clustered in either case.

    Raises
    ------
    ValueError
        If `distance` is unknown.
    """

    n_extra_channels = 0

    def __init__(
        self,
        n_learned_features: int = 15,
        *,
        n_iter: int = 5,
        distance: str = "euclidean",
        sees_position: bool = True,
    ) -> None:
        _check_distance(distance)
        super().__init__()
        self.n_learned_features = n_learned_features
        self.n_iter = n_iter
        self.distance = distance
        self.sees_position = sees_position
        self.feature_extract = FeatureExtractor(N_BASE_CHANNELS, n_learned_features)

    def arguments(self) -> dict[str, int | str | bool]:
        """What rebuilds the model: arguments of its constructor."""
        names = ("n_learned_features", "n_iter", "distance", "sees_position")
        return {name: getattr(self, name) for name in names}

    def forward(self, labyx: Tensor, n_spixels: int, *, n_iter: int | None = None) -> SSNOutput:
        """Segment scaled images (B, 5, H, W) of channels [L, a, b, y, x]; see `labyx_features`.

        `n_iter` are the iterations in place of the model's, say in training.
        """
        features = self.pixel_features(labyx)
        return cluster(
            features, n_spixels, n_iter=self.n_iter if n_iter is None else n_iter, distance=self.distance
        )

    def pixel_features(self, labyx: Tensor, *, base_features: Tensor | None = None) -> Tensor:
        """Features that are clustered, (B, n_learned_features + 5, H, W): [learned, L, a, b, y, x].

        The learned ones are not computed again if they are given.
        """
        if base_features is not None:
            return torch.cat([base_features, labyx], dim=1)
        return _base_features(self.feature_extract, labyx, sees_position=self.sees_position)

    def position_invariant_features(self, labyx: Tensor, *, base_features: Tensor | None = None) -> Tensor:
        """Learned features computed with position set to zero, (B, n_learned_features, H, W).

        They are not computed again if `shareable_features` are given.
        """
        if base_features is not None:
            return base_features
        return _learned_without_position(self.feature_extract, labyx)

    @property
    def position_channels(self) -> slice:
        """Where the position is in `pixel_features`."""
        return slice(self.n_learned_features + 3, self.n_learned_features + N_BASE_CHANNELS)

    def shareable_features(self, labyx: Tensor) -> dict[str, Tensor]:
        """What the other methods take as given: learned features that do not depend on the position."""
        return {} if self.sees_position else {"base_features": self.position_invariant_features(labyx)}

    def compile_network(self) -> None:
        """Compile the trained network in place with `torch.compile`."""
        self.feature_extract.compile()


class CompositeSSNModel(nn.Module):
    """A frozen base model beside a second network, which reads extra channels such as optical flow.

    The features of both are clustered together. The base part stays in evaluation mode whatever the mode
    of the model, so that neither its weights nor its batch norm statistics move in training.

    The attribute names are those of the published weights, hence `feature_extract_optflow`; the network
    takes any channels.

    Parameters
    ----------
    n_learned_features : int
        Learned features per pixel of the base model.
    n_extra_features : int
        Learned features per pixel of the second network.
    n_extra_channels : int
        Extra channels: four for the optical flow of a frame to its next and to its previous one.
    n_iter : int
        Iterations of the clustering.
    distance : {"euclidean", "squared"}
        Distance of the clustering.
    sees_position : bool
        Whether the base network reads the position; see `SSNModel`.

    Raises
    ------
    ValueError
        If `distance` is unknown.
    """

    def __init__(
        self,
        n_learned_features: int = 15,
        n_extra_features: int = 10,
        *,
        n_extra_channels: int = N_FLOW_CHANNELS,
        n_iter: int = 5,
        distance: str = "euclidean",
        sees_position: bool = True,
    ) -> None:
        _check_distance(distance)
        super().__init__()
        self.n_learned_features = n_learned_features
        self.n_extra_features = n_extra_features
        self.n_extra_channels = n_extra_channels
        self.n_iter = n_iter
        self.distance = distance
        self.sees_position = sees_position
        self.feature_extract_color = FeatureExtractor(N_BASE_CHANNELS, n_learned_features)
        self.feature_extract_color.requires_grad_(False).eval()
        self.feature_extract_optflow = FeatureExtractor(
            n_extra_channels, n_extra_features, n_mid_channels=32, concat_input=False
        )

    @classmethod
    def on_top_of(cls, base: SSNModel, n_extra_features: int = 10, *, n_extra_channels: int) -> Self:
        """Build an untrained composite around a copy of a base model, with its settings."""
        composite = cls(
            n_extra_features=n_extra_features, n_extra_channels=n_extra_channels, **base.arguments()
        )
        composite.feature_extract_color.load_state_dict(base.feature_extract.state_dict())
        return composite

    def arguments(self) -> dict[str, int | str | bool]:
        """What rebuilds the model: arguments of its constructor."""
        names = (
            "n_learned_features",
            "n_extra_features",
            "n_extra_channels",
            "n_iter",
            "distance",
            "sees_position",
        )
        return {name: getattr(self, name) for name in names}

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the second network; the base part stays in evaluation mode."""
        super().train(mode)
        self.feature_extract_color.eval()
        return self

    def forward(self, channels: Tensor, n_spixels: int, *, n_iter: int | None = None) -> SSNOutput:
        """Segment scaled images (B, 5 + n_extra_channels, H, W); see `input_channels`.

        `n_iter` are the iterations in place of the model's, say in training.
        """
        features = self.pixel_features(channels)
        return cluster(
            features, n_spixels, n_iter=self.n_iter if n_iter is None else n_iter, distance=self.distance
        )

    def pixel_features(
        self,
        channels: Tensor,
        *,
        base_features: Tensor | None = None,
        extra_features: Tensor | None = None,
    ) -> Tensor:
        """Features that are clustered, (B, C, H, W): [base, L, a, b, y, x, extra].

        Learned ones are not computed again if they are given.
        """
        labyx = channels[:, :N_BASE_CHANNELS]
        if base_features is None:
            with torch.no_grad():
                base = _base_features(self.feature_extract_color, labyx, sees_position=self.sees_position)
        else:
            base = torch.cat([base_features, labyx], dim=1)
        if extra_features is None:
            extra_features = self.extra_features(channels)
        return torch.cat([base, extra_features], dim=1)

    def extra_features(self, channels: Tensor) -> Tensor:
        """The learned features of the extra channels alone, (B, n_extra_features, H, W)."""
        return self.feature_extract_optflow(channels[:, N_BASE_CHANNELS:])

    def position_invariant_features(
        self,
        channels: Tensor,
        *,
        base_features: Tensor | None = None,
        extra_features: Tensor | None = None,
    ) -> Tensor:
        """Learned features with position set to zero for the base part, (B, C, H, W): [base, extra].

        They are not computed again if `shareable_features` are given.
        """
        if base_features is None:
            base_features = _learned_without_position(
                self.feature_extract_color, channels[:, :N_BASE_CHANNELS]
            )
        if extra_features is None:
            extra_features = self.extra_features(channels)
        return torch.cat([base_features, extra_features], dim=1)

    @property
    def position_channels(self) -> slice:
        """Where the position is in `pixel_features`."""
        return slice(self.n_learned_features + 3, self.n_learned_features + N_BASE_CHANNELS)

    def shareable_features(self, channels: Tensor) -> dict[str, Tensor]:
        """What the other methods take as given: learned features that do not depend on the position."""
        shareable = {"extra_features": self.extra_features(channels)}
        if not self.sees_position:
            labyx = channels[:, :N_BASE_CHANNELS]
            shareable["base_features"] = _learned_without_position(self.feature_extract_color, labyx)
        return shareable

    def compile_network(self) -> None:
        """Compile both networks in place with `torch.compile`."""
        self.feature_extract_color.compile()
        self.feature_extract_optflow.compile()


class SSNPix(nn.Module):
    """The model without a network (SSN_pix in the paper): clusters colour and position as they are.

    Parameters
    ----------
    n_iter : int
        Iterations of the clustering.
    """

    n_extra_channels = 0
    distance = "euclidean"
    position_channels = slice(3, N_BASE_CHANNELS)

    def __init__(self, *, n_iter: int = 5) -> None:
        super().__init__()
        self.n_iter = n_iter

    def forward(self, labyx: Tensor, n_spixels: int) -> SSNOutput:
        """Segment scaled images (B, 5, H, W); see `labyx_features`."""
        return cluster(self.pixel_features(labyx), n_spixels, n_iter=self.n_iter, distance=self.distance)

    def pixel_features(self, labyx: Tensor) -> Tensor:
        """Features that are clustered: the input itself."""
        return labyx

    def shareable_features(self, labyx: Tensor) -> dict[str, Tensor]:
        """Nothing, as nothing is learned; see `SSNModel.shareable_features`."""
        return {}


def cluster(
    pixel_features: Tensor,
    n_spixels: int,
    *,
    n_iter: int,
    distance: str,
    mask: Tensor | None = None,
    start: Tensor | None = None,
) -> SSNOutput:
    """Cluster (B, C, H, W) pixel features, in float32 or wider even under autocast; see `slic`."""
    with torch.autocast(pixel_features.device.type, enabled=False):
        assignment = slic(pixel_features, n_spixels, n_iter=n_iter, distance=distance, mask=mask, start=start)
        return SSNOutput(assignment, assignment.labels(), pixel_features)


def cluster_labels(
    pixel_features: Tensor, n_spixels: int, *, n_iter: int, distance: str, mask: Tensor | None = None
) -> Tensor:
    """The labels of `cluster` alone, (B, H, W) int64; see `slic_labels`."""
    with torch.autocast(pixel_features.device.type, enabled=False):
        return slic_labels(pixel_features, n_spixels, n_iter=n_iter, distance=distance, mask=mask)


def _check_distance(distance: str) -> None:
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")


def _base_features(extractor: FeatureExtractor, labyx: Tensor, *, sees_position: bool) -> Tensor:
    """Learned features and the input, (B, n + 5, H, W)."""
    if sees_position:
        return extractor(labyx)
    features = extractor(_without_position(labyx))
    features[:, -2:] = labyx[:, -2:]
    return features


def _learned_without_position(extractor: FeatureExtractor, labyx: Tensor) -> Tensor:
    return extractor(_without_position(labyx))[:, :-N_BASE_CHANNELS]


def _without_position(labyx: Tensor) -> Tensor:
    labyx = labyx.clone()  # which keeps the channels innermost, as a concatenation would not
    labyx[:, -2:] = 0
    return labyx


class _ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU. In evaluation, the norm is part of the convolution."""

    def __init__(self, n_in_channels: int, n_out_channels: int, *, reads_input: bool = False) -> None:
        super().__init__(
            nn.Conv2d(n_in_channels, n_out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out_channels),
            nn.ReLU(inplace=True),
        )
        self.reads_input = reads_input

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, relu = self
        if self.training or torch.is_grad_enabled():
            return relu(norm(self._convolve(x, conv.weight)))
        factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - factor * norm.running_mean
        return relu(self._convolve(x, factor[:, None, None, None] * conv.weight, shift))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.reads_input:
            return F.conv2d(x, weight, bias, padding=1)
        result = _convolve_precisely(x, weight, bias)
        device = x.device.type
        is_narrow = torch.is_autocast_enabled(device)
        return result.to(torch.get_autocast_dtype(device)) if is_narrow else result


def _convolve_precisely(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """3x3 convolution of input channels, in their type even under autocast.

    Positions go up to some hundreds, where bfloat16 only tells whole numbers apart.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x, weight, bias, padding=1)


def _halving_scale(n_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.MaxPool2d(3, 2, padding=1),
        _ConvBlock(n_channels, n_channels),
        _ConvBlock(n_channels, n_channels),
    )
