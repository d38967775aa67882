"""Generator and Discriminator of StyleGAN2 (Karras et al., arXiv 1912.04958) as used with ADA (arXiv 2006.06676).

Parameter and buffer names are those of the published networks, so that their weights load. Weights stay in float32;
under torch.autocast the convolutions run in its dtype, while styles, demodulation coefficients, minibatch standard
deviation, RGB images and logits are float32. Inside, images are channels-last, the layout that convolutions like best.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import (
    bias_act,
    downsample2d,
    modulated_conv2d,
    resampled_conv2d,
    setup_filter,
    synthesis_tail,
    upsample2d,
)
from .ops.backend import use_kernels
from .ops.bias_act import activate_, find_activation
from .ops.modulated_conv2d import bounded_factors, demodulation

ARCHITECTURES = ("orig", "skip", "resnet")  # Fig. 7 of the StyleGAN2 paper: a, b, c
BLUR = (1, 3, 3, 1)


class FullyConnected(nn.Module):
    """Linear layer with equalised learning rate (Karras et al., arXiv 1710.10196, Sec. 4.1), always in float32.

    Weights are stored as N(0, 1 / lr_multiplier) and scaled by lr_multiplier / sqrt(in_features) when used.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        lr_multiplier: float = 1,
        bias_init: float = 0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], bias_init / lr_multiplier))

    def forward(self, x: Tensor) -> Tensor:
        activation = find_activation(self.activation)
        early, late = (activation.gain, 1.0) if activation.homogeneous else (1.0, activation.gain)
        with exact(x.device.type):
            x = F.linear(x.float(), self.weight * (self.weight_gain * early), self.bias * (self.bias_gain * early))
            return activate_(x, self.activation, gain=late)


class Convolution(nn.Module):
    """Convolution with equalised learning rate, optional resampling, bias and activation."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = BLUR,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("resample_filter", setup_filter(resample_filter))

    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        """(B, Cin, H, W) -> (B, Cout, H * up / down, W * up / down), multiplied by `gain`; the clamp scales with it."""
        activation = find_activation(self.activation)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        gain = gain * activation.gain
        if use_kernels("auto", x):
            x = self._resample(x, self.weight * self.weight_gain, None)
            return bias_act(x, self.bias, act=self.activation, gain=gain, clamp=clamp)
        early, late = (gain, 1.0) if activation.homogeneous and gain > 0 else (1.0, gain)
        bias = None if self.bias is None else (self.bias * early).to(x.dtype)
        x = self._resample(x, self.weight * (self.weight_gain * early), bias)
        return activate_(x, self.activation, gain=late, clamp=clamp)

    def _resample(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return resampled_conv2d(
            x,
            weight.to(x.dtype),
            self.resample_filter,
            self.up,
            self.down,
            self.padding,
            flip_weight=self.up == 1,
            bias=bias,
        )


class Mapping(nn.Module):
    """Maps z and the condition c to style vectors (StyleGAN, Karras et al., arXiv 1812.04948, Sec. 2).

    Args:
        z_dim: 0 maps the condition alone, as the discriminator does.
        c_dim: 0 for an unconditional network.
        w_dim: width of the result.
        num_ws: the result is repeated to (B, num_ws, w_dim); None gives (B, w_dim), and no running mean.
        num_layers, layer_features, activation: depth, width (None: w_dim) and activation.
        embed_features: width of the embedded condition (None: w_dim).
        lr_multiplier: learning rate of the layers relative to the rest (0.01 in both papers).
        w_avg_beta: decay of the running mean of w that truncation uses.
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.995,
    ) -> None:
        super().__init__()
        if z_dim + c_dim == 0 or num_layers < 1:
            raise ValueError(f"a mapping needs input and layers; z_dim {z_dim}, c_dim {c_dim}, num_layers {num_layers}")
        self.z_dim, self.c_dim, self.num_ws, self.num_layers, self.w_avg_beta = (
            z_dim,
            c_dim,
            num_ws,
            num_layers,
            w_avg_beta,
        )
        embed_features = (embed_features or w_dim) if c_dim > 0 else 0
        if c_dim > 0:
            self.embed = FullyConnected(c_dim, embed_features)
        widths = [z_dim + embed_features] + [layer_features or w_dim] * (num_layers - 1) + [w_dim]
        for i in range(num_layers):
            layer = FullyConnected(widths[i], widths[i + 1], activation=activation, lr_multiplier=lr_multiplier)
            self.add_module(f"fc{i}", layer)
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_w_avg: bool = False,
    ) -> Tensor:
        """(B, z_dim) and (B, c_dim) -> (B, num_ws, w_dim).

        Args:
            truncation_psi: 1 leaves w alone, 0 gives the mean style everywhere.
            truncation_cutoff: number of leading styles to truncate; None for all.
            update_w_avg: let this batch count for the running mean; training does so.
        """
        x = torch.cat([_normalised(part) for part in self._inputs(z, c)], dim=1)
        for i in range(self.num_layers):
            x = self.get_submodule(f"fc{i}")(x)
        if self.num_ws is None:
            return x
        if update_w_avg:
            self.w_avg.copy_(x.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = x.unsqueeze(1).repeat(1, self.num_ws, 1)
        if truncation_psi == 1:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)

    def _inputs(self, z: Tensor | None, c: Tensor | None) -> list[Tensor]:
        inputs = []
        if self.z_dim > 0:
            inputs.append(_checked(z, self.z_dim, "z"))
        if self.c_dim > 0:
            inputs.append(self.embed(_checked(c, self.c_dim, "c")))
        return inputs


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias and activation (StyleGAN2 paper, Fig. 2c)."""

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = BLUR,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.up, self.activation, self.conv_clamp, self.use_noise = up, activation, conv_clamp, use_noise
        self.resolution = resolution
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        if use_noise:
            self.noise_strength = nn.Parameter(torch.zeros([]))
            self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise_mode: str = "random", gain: float = 1) -> Tensor:
        """(B, Cin, H / up, W / up) and (B, w_dim) -> (B, Cout, H, W); the noise is (B, 1, H, W) or (H, W)."""
        weight, styles = bounded_factors(x, self.weight, self.affine(w))
        x = modulated_conv2d(
            x,
            weight,
            styles,
            up=self.up,
            padding=1,
            resample_filter=self.resample_filter,
            demodulate=False,
            flip_weight=self.up == 1,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        gain = gain * find_activation(self.activation).gain
        noise = self._noise(x, noise_mode)
        return synthesis_tail(x, demodulation(weight, styles), noise, self.bias, self.activation, gain, clamp)

    def _noise(self, x: Tensor, noise_mode: str) -> Tensor | None:
        if not self.use_noise or noise_mode == "none":
            return None
        if noise_mode == "const":
            return self.noise_const * self.noise_strength
        return torch.randn(x.shape[0], 1, self.resolution, self.resolution, device=x.device) * self.noise_strength


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation, in float32 from there on (StyleGAN2 paper, Fig. 7b)."""

    def __init__(self, in_channels: int, img_channels: int, w_dim: int, conv_clamp: float | None = None) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(img_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, Cin, H, W) and (B, w_dim) -> (B, img_channels, H, W) float32."""
        x = modulated_conv2d(x, self.weight, self.affine(w) * self.weight_gain, demodulate=False)
        return bias_act(x.float(), self.bias, clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    """All layers of one resolution: two synthesis layers (one at 4x4), RGB output, residual path."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str,
        use_fp16: bool,
        use_noise: bool,
        activation: str,
        resample_filter: Sequence[float],
        conv_clamp: float | None,
    ) -> None:
        super().__init__()
        self.architecture, self.use_fp16 = architecture, use_fp16
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        options: dict[str, Any] = dict(
            use_noise=use_noise, activation=activation, resample_filter=resample_filter, conv_clamp=conv_clamp
        )
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2, **options)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, **options)
        self.has_torgb = is_last or architecture == "skip"
        if self.has_torgb:
            self.torgb = ToRGB(out_channels, img_channels, w_dim, conv_clamp)
        self.has_skip = in_channels > 0 and architecture == "resnet"
        if self.has_skip:
            self.skip = Convolution(in_channels, out_channels, 1, bias=False, up=2, resample_filter=resample_filter)
        self.num_conv = 1 if in_channels == 0 else 2

    def forward(
        self, x: Tensor | None, img: Tensor | None, ws: Tensor, noise_mode: str
    ) -> tuple[Tensor, Tensor | None]:
        """Takes features and image of the resolution below and ws (B, num_conv + 1, w_dim); the last one is for RGB."""
        if x is None:
            x = self.const.expand(ws.shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last)
            x = self.conv1(_block_dtype(x, self.use_fp16), ws[:, 0], noise_mode)
        else:
            x = _block_dtype(x, self.use_fp16)
            gain = math.sqrt(0.5) if self.has_skip else 1.0
            y = self.skip(x, gain=gain) if self.has_skip else None
            x = self.conv1(self.conv0(x, ws[:, 0], noise_mode), ws[:, 1], noise_mode, gain=gain)
            x = x if y is None else x + y
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.has_torgb:
            rgb = self.torgb(x, ws[:, self.num_conv])
            img = rgb if img is None else img + rgb
        return x, img


class Synthesis(nn.Module):
    """Style vectors to image.

    Args:
        w_dim, img_resolution, img_channels: widths and size; the resolution is a power of two from 4.
        channel_base, channel_max: a block of resolution R has min(channel_base / R, channel_max) channels.
        num_fp16_res: number of the highest resolutions that run in float16 on GPUs (ADA paper, Appendix C.1).
        conv_clamp: limit of the activations' size; 256 keeps float16 safe.
        architecture: "skip" sums an RGB image over all resolutions, "resnet" adds features, "orig" does neither.
        activation, resample_filter, use_noise: of all layers.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        conv_clamp: float | None = None,
        architecture: str = "skip",
        activation: str = "lrelu",
        resample_filter: Sequence[float] = BLUR,
        use_noise: bool = True,
    ) -> None:
        super().__init__()
        _check_architecture(architecture)
        self.w_dim = w_dim
        self.block_resolutions = _resolutions(img_resolution)
        channels = {r: min(channel_base // r, channel_max) for r in self.block_resolutions}
        for r in self.block_resolutions:
            block = SynthesisBlock(
                channels[r // 2] if r > 4 else 0,
                channels[r],
                w_dim,
                r,
                img_channels,
                is_last=r == img_resolution,
                architecture=architecture,
                use_fp16=_in_fp16(r, img_resolution, num_fp16_res),
                use_noise=use_noise,
                activation=activation,
                resample_filter=resample_filter,
                conv_clamp=conv_clamp,
            )
            self.add_module(f"b{r}", block)
        self.num_ws = 2 * len(self.block_resolutions)

    def forward(self, ws: Tensor, noise_mode: str = "random") -> Tensor:
        """(B, num_ws, w_dim) -> float32 images (B, img_channels, H, W), trained for [-1, 1], not clamped.

        Neighbouring blocks share a style: the RGB layer takes the first of the next block (StyleGAN2 paper, Fig. 7).

        Args:
            noise_mode: "random" samples noise from torch's global generator, "const" uses the stored one, "none" none.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws has shape {tuple(ws.shape)}; (B, {self.num_ws}, {self.w_dim}) is needed")
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode is {noise_mode!r}; choose random, const or none")
        x: Tensor | None = None
        img: Tensor | None = None
        first = 0
        for r in self.block_resolutions:
            block = cast(SynthesisBlock, self.get_submodule(f"b{r}"))
            x, img = block(x, img, ws[:, first : first + block.num_conv + 1], noise_mode)
            first += block.num_conv
        return cast(Tensor, img)  # the last block always makes one


class Generator(nn.Module):
    """z -> w -> image (StyleGAN2 paper). Raises ValueError for resolutions that are not a power of two from 4.

    Args:
        z_dim, c_dim, w_dim: widths of latent, condition (0: none) and style.
        img_resolution, img_channels: size of the square images.
        mapping_kwargs: keywords of `Mapping`: num_layers, embed_features, layer_features, activation, lr_multiplier,
            w_avg_beta.
        synthesis_kwargs: keywords of `Synthesis`: channel_base, channel_max, num_fp16_res, conv_clamp, architecture,
            activation, resample_filter, use_noise.

    Attributes:
        num_ws: styles per image.
        config: the arguments, to build it again with Generator(**config).
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict[str, Any] | None = None,
        synthesis_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.config: dict[str, Any] = dict(
            z_dim=z_dim,
            c_dim=c_dim,
            w_dim=w_dim,
            img_resolution=img_resolution,
            img_channels=img_channels,
            mapping_kwargs=dict(mapping_kwargs or {}),
            synthesis_kwargs=dict(synthesis_kwargs or {}),
        )
        self.synthesis = Synthesis(w_dim, img_resolution, img_channels, **self.config["synthesis_kwargs"])
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(z_dim, c_dim, w_dim, self.num_ws, **self.config["mapping_kwargs"])

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
        update_w_avg: bool = False,
    ) -> Tensor:
        """(B, z_dim) and (B, c_dim) -> images (B, img_channels, H, W); the arguments are those of the two halves."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_w_avg)
        return self.synthesis(ws, noise_mode)


def draw_noise(network: nn.Module, size: int) -> None:
    """Sample the noise of a batch and drop it: later random numbers are as if the batch had been generated."""
    for layer in network.modules():
        if isinstance(layer, SynthesisLayer) and layer.use_noise:
            torch.randn(size, 1, layer.resolution, layer.resolution, device=layer.bias.device)


class DiscriminatorBlock(nn.Module):
    """Two convolutions at one resolution, the second of which halves it; RGB input and residual path."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        tmp_channels: int,
        out_channels: int,
        img_channels: int,
        architecture: str,
        use_fp16: bool,
        conv_clamp: float | None,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = BLUR,
    ) -> None:
        super().__init__()
        self.architecture, self.use_fp16 = architecture, use_fp16
        options: dict[str, Any] = dict(activation=activation, resample_filter=resample_filter, conv_clamp=conv_clamp)
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        if in_channels == 0 or architecture == "skip":
            self.fromrgb = Convolution(img_channels, tmp_channels, 1, **options)
        self.conv0 = Convolution(tmp_channels, tmp_channels, 3, **options)
        self.conv1 = Convolution(tmp_channels, out_channels, 3, down=2, **options)
        if architecture == "resnet":
            self.skip = Convolution(tmp_channels, out_channels, 1, bias=False, down=2, resample_filter=resample_filter)

    def forward(self, x: Tensor | None, img: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features (None at the highest resolution) and image (None if no longer needed) -> both at half the size."""
        x = None if x is None else _block_dtype(x, self.use_fp16)
        if img is not None:
            rgb = self.fromrgb(_block_dtype(img, self.use_fp16))
            x = rgb if x is None else x + rgb
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture != "resnet":
            return self.conv1(self.conv0(x)), img
        gain = math.sqrt(0.5)
        return self.skip(x, gain=gain) + self.conv1(self.conv0(x), gain=gain), img


class DiscriminatorEpilogue(nn.Module):
    """From 4x4 features to the logit, or to cmap_dim features that the condition selects from.

    Args:
        mbstd_group_size: samples whose standard deviation is computed together; None for the whole batch.
        mbstd_num_channels: statistics channels to add; 0 for none.
    """

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        img_channels: int,
        architecture: str,
        conv_clamp: float | None,
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = BLUR,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.mbstd_group_size, self.mbstd_num_channels = mbstd_group_size, mbstd_num_channels
        options: dict[str, Any] = dict(activation=activation, resample_filter=resample_filter, conv_clamp=conv_clamp)
        if architecture == "skip":
            self.fromrgb = Convolution(img_channels, in_channels, 1, **options)
        self.conv = Convolution(in_channels + mbstd_num_channels, in_channels, 3, **options)
        self.fc = FullyConnected(in_channels * 4 * 4, in_channels, activation=activation)
        self.out = FullyConnected(in_channels, cmap_dim or 1)

    def forward(self, x: Tensor, img: Tensor | None) -> Tensor:
        """(B, C, 4, 4) -> (B, cmap_dim or 1), float32."""
        x = _block_dtype(x, use_fp16=False)
        if self.architecture == "skip":
            x = x + self.fromrgb(img)
        if self.mbstd_num_channels > 0:
            x = minibatch_std(x, self.mbstd_group_size, self.mbstd_num_channels)
        return self.out(self.fc(self.conv(x).flatten(1)))


class Discriminator(nn.Module):
    """Image and condition -> logit (StyleGAN2 paper; conditional form: ADA paper, Appendix C.1, after Miyato and
    Koyama, arXiv 1802.05637). Raises ValueError for resolutions that are not a power of two from 8.

    Args:
        c_dim: 0 for none.
        img_resolution, img_channels: size of the square images.
        architecture: "resnet", "skip" or "orig".
        channel_base, channel_max, num_fp16_res, conv_clamp: as in `Synthesis`.
        cmap_dim: width of the mapped condition; None takes the channels at 4x4.
        block_kwargs: activation and resample_filter of the blocks.
        mapping_kwargs: keywords of `Mapping`.
        epilogue_kwargs: mbstd_group_size, mbstd_num_channels, activation, resample_filter.
    """

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        conv_clamp: float | None = None,
        cmap_dim: int | None = None,
        block_kwargs: dict[str, Any] | None = None,
        mapping_kwargs: dict[str, Any] | None = None,
        epilogue_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_architecture(architecture)
        self.config: dict[str, Any] = dict(
            c_dim=c_dim,
            img_resolution=img_resolution,
            img_channels=img_channels,
            architecture=architecture,
            channel_base=channel_base,
            channel_max=channel_max,
            num_fp16_res=num_fp16_res,
            conv_clamp=conv_clamp,
            cmap_dim=cmap_dim,
            block_kwargs=dict(block_kwargs or {}),
            mapping_kwargs=dict(mapping_kwargs or {}),
            epilogue_kwargs=dict(epilogue_kwargs or {}),
        )
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.block_resolutions = _resolutions(img_resolution, smallest=8)[:0:-1]
        channels = {r: min(channel_base // r, channel_max) for r in [*self.block_resolutions, 4]}
        for r in self.block_resolutions:
            block = DiscriminatorBlock(
                channels[r] if r < img_resolution else 0,
                channels[r],
                channels[r // 2],
                img_channels,
                architecture=architecture,
                use_fp16=_in_fp16(r, img_resolution, num_fp16_res),
                conv_clamp=conv_clamp,
                **self.config["block_kwargs"],
            )
            self.add_module(f"b{r}", block)
        self.cmap_dim = (cmap_dim or channels[4]) if c_dim > 0 else 0
        if c_dim > 0:
            self.mapping = Mapping(0, c_dim, self.cmap_dim, num_ws=None, **self.config["mapping_kwargs"])
        self.b4 = DiscriminatorEpilogue(
            channels[4], self.cmap_dim, img_channels, architecture, conv_clamp, **self.config["epilogue_kwargs"]
        )

    def forward(self, img: Tensor, c: Tensor | None = None) -> Tensor:
        """Images (B, img_channels, H, W) in [-1, 1] and (B, c_dim) -> logits (B, 1), float32."""
        expected = (self.img_channels, self.img_resolution, self.img_resolution)
        if img.ndim != 4 or img.shape[1:] != expected:
            raise ValueError(f"img has shape {tuple(img.shape)}; (B, {', '.join(map(str, expected))}) is needed")
        x: Tensor | None = None
        img = img.contiguous(memory_format=torch.channels_last)
        for r in self.block_resolutions:
            x, img = self.get_submodule(f"b{r}")(x, img)
        logits = self.b4(x, img)
        if self.c_dim == 0:
            return logits
        return (logits * self.mapping(None, c)).sum(1, keepdim=True) / math.sqrt(self.cmap_dim)


def minibatch_std(x: Tensor, group_size: int | None, num_channels: int) -> Tensor:
    """Appends `num_channels` with the standard deviation over groups of the batch (arXiv 1710.10196, Sec. 3), float32.

    The standard deviation over the group is averaged over pixels and C / num_channels channels. A group holds samples
    b, b + M, b + 2M, ... with M = B / group_size, as the published networks do; a smaller batch is one group.

    Raises:
        ValueError: the batch does not divide into groups, or the channels into statistics.
    """
    b, c, h, w = x.shape
    g = b if group_size is None else min(group_size, b)
    if b % g or c % num_channels:
        raise ValueError(
            f"batch of {b} and {c} channels do not divide by mbstd_group_size {g} and channels {num_channels}"
        )
    groups = x.float().reshape(g, b // g, num_channels, c // num_channels, h, w)
    variance = (groups - groups.mean(0)).square().mean(0)  # several times faster than var(0) on CPUs
    std = (variance + 1e-8).sqrt().mean([2, 3, 4])  # (B / g, num_channels)
    std = std.repeat(g, 1)[:, :, None, None].expand(-1, -1, h, w)
    return torch.cat([x, std.to(x.dtype)], dim=1)


def exact(device_type: str) -> AbstractContextManager[Any]:
    """Autocast switched off; free where it is off already, as entering torch.autocast costs more than a small layer."""
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else nullcontext()


def _normalised(x: Tensor) -> Tensor:
    """Scales each row to unit mean square."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def _checked(x: Tensor | None, width: int, name: str) -> Tensor:
    if x is None or x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"{name} has shape {None if x is None else tuple(x.shape)}; (B, {width}) is needed")
    return x.float()


def _block_dtype(x: Tensor, use_fp16: bool) -> Tensor:
    """float16 for blocks that ask for it, on GPUs; otherwise float32, or whatever autocast has made of it."""
    if use_fp16 and x.device.type == "cuda":
        return x.to(torch.float16)
    return x if torch.is_autocast_enabled(x.device.type) else x.float()


def _in_fp16(resolution: int, img_resolution: int, num_fp16_res: int) -> bool:
    return resolution * 2**num_fp16_res > img_resolution


def _resolutions(img_resolution: int, smallest: int = 4) -> list[int]:
    exponent = img_resolution.bit_length() - 1
    if img_resolution < smallest or img_resolution != 2**exponent:
        raise ValueError(f"img_resolution is {img_resolution}; choose a power of two from {smallest}, like 64 or 256")
    return [2**i for i in range(2, exponent + 1)]


def _check_architecture(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture is {architecture!r}; choose one of {', '.join(ARCHITECTURES)}")
