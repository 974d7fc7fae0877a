"""Pooling of regions of interest under granularity="primitive": the operations of torchvision's kernels, each rounded.

roi_align: a region's corners times the scale, less 0.5 if aligned; its extent over the number of bins; a sample's place
(start + bin * size) + ((i + 0.5) * size) / samples; a corner's weight is the product of those along y and x. A sample is
the sum of four weighted values, a bin the sum of its samples over their number. roi_pool: whole places, the largest value.
ps_ forms read a channel for each bin. Gradients meet in the order of regions, channels, bins, samples, corners. Sums are the
accumulator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Sizes = tuple[int, int]


def _check_images(rois: Tensor, images: int) -> list[int] | None:
    """The image of each region; None where an operand is not what the operator takes."""
    if rois.dim() != 2 or rois.shape[1] != 5 or not bool(rois.isfinite().all()):
        return None
    found = [int(image) for image in rois[:, 0].tolist()]
    return found if all(0 <= image < images for image in found) else None


# Samples between the elements


@dataclass
class _Axis:
    """Along one axis, (bins, samples): the two neighbors of every sample, their weights, and whether it is inside."""

    neighbors: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]
    inside: Tensor

    @staticmethod
    def of(start: Tensor, size: Tensor, bins: int, samples: int, length: int) -> _Axis:
        within = (torch.arange(samples).to(size.dtype) + 0.5) * size / float(samples) if samples > 0 else size.new_empty(0)
        c = (start + torch.arange(bins).to(size.dtype) * size)[:, None] + within
        inside = (c >= -1.0) & (c <= float(length))
        c = torch.where(inside & (c > 0), c, 0.0)
        low = c.trunc()
        at_end = low >= length - 1
        part = torch.where(at_end, 0.0, c - low)
        first = torch.where(at_end, length - 1, low.long())
        return _Axis((first, torch.where(at_end, length - 1, first + 1)), (1.0 - part, part), inside)


@dataclass
class _Samples:
    """Of one region, (bins along y, along x, samples, corners): places in an image, weights; (..., samples, 1): inside.

    `count` is what their sum is divided by; a region turned inside out has no samples.
    """

    places: Tensor
    weights: Tensor
    inside: Tensor
    count: int

    @staticmethod
    def of(region: Tensor, bins: Sizes, sampling: int, lengths: Sizes, at_least: float | None) -> _Samples:
        """`region`: x1, y1, x2, y2 in the image's own units."""
        axes, count = [], 1
        for axis in (0, 1):
            start = region[1 - axis]
            extent = region[3 - axis] - start
            if at_least is not None:
                extent = torch.where(extent < at_least, at_least, extent)
            size = extent / float(bins[axis])
            samples = sampling if sampling > 0 else int(size.ceil().item())
            count *= samples
            axes.append(_Axis.of(start, size, bins[axis], samples, lengths[axis]))
        y, x = axes
        inside = y.inside[:, None, :, None] & x.inside[None, :, None, :]
        places, weights = [], []
        for i in (0, 1):
            for j in (0, 1):
                place = y.neighbors[i][:, None, :, None] * lengths[1] + x.neighbors[j][None, :, None, :]
                places.append(torch.where(inside, place, 0))
                weights.append(torch.where(inside, y.weights[i][:, None, :, None] * x.weights[j][None, :, None, :], 0.0))
        places_of_all, weights_of_all = (torch.stack(item, -1).flatten(2, 3) for item in (places, weights))
        return _Samples(places_of_all, weights_of_all, inside.flatten(2, 3)[..., None], count)


def _aligned(rois: Tensor, scale: float, aligned: bool) -> Tensor:
    places = rois[:, 1:] * scale
    return places - 0.5 if aligned else places


def _of_channels(channels: Tensor, area: int, places: Tensor) -> Tensor:
    """Places (channels, bins, bins, samples, corners) in an image of all channels, from those in one."""
    return channels[..., None, None] * area + places


def _added(shape: tuple[int, ...], dtype: torch.dtype, parts: Iterator[tuple[int, Tensor, Tensor]]) -> Tensor:
    """Terms at their places of each image, in the order in which they come."""
    images: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(shape[0])]
    for image, places, terms in parts:
        images[image].append((places.reshape(-1), terms.reshape(-1)))
    results = []
    for found in images:
        base = torch.zeros(shape[1:], dtype=dtype).flatten()
        if found:
            base = base.index_add(0, torch.cat([item[0] for item in found]), torch.cat([item[1] for item in found]))
        results.append(base.reshape(shape[1:]))
    return torch.stack(results) if results else torch.zeros(shape, dtype=dtype)


def _aligned_bins(
    x: Tensor, rois: Tensor, scale: float, bins: Sizes, sampling: int, channels: Tensor, aligned: bool, of_parts: bool
) -> Tensor:
    """(regions, channels, bins, bins): means of samples."""
    images = _check_images(rois, x.shape[0])
    if images is None or x.dim() != 4 or rois.dtype is not x.dtype:
        return NotImplemented  # the operator has an error of its own
    lengths, results = (x.shape[2], x.shape[3]), []
    for image, region in zip(images, _aligned(rois, scale, aligned or of_parts), strict=True):
        samples = _Samples.of(region, bins, sampling, lengths, None if aligned or of_parts else 1.0)
        values = x[image].flatten()[_of_channels(channels, x.shape[2] * x.shape[3], samples.places)]
        terms = values * samples.weights
        if of_parts:
            terms = torch.where(samples.inside, terms, 0.0)
        count = samples.count if of_parts else max(samples.count, 1)
        results.append(terms.sum(-1).sum(-1) / float(count))
    return torch.stack(results) if results else x.new_zeros(0, *channels.shape[:1], *bins)


def _aligned_gradient(
    gradient: Tensor, rois: Tensor, scale: float, bins: Sizes, sampling: int, shape: tuple[int, ...], mapping: Tensor,
    aligned: bool, of_parts: bool,
) -> Tensor:  # fmt: skip
    images = _check_images(rois, shape[0])
    if images is None or rois.dtype is not gradient.dtype:
        return NotImplemented
    lengths = (shape[2], shape[3])

    def parts() -> Iterator[tuple[int, Tensor, Tensor]]:
        for index, (image, region) in enumerate(zip(images, _aligned(rois, scale, aligned or of_parts), strict=True)):
            samples = _Samples.of(region, bins, sampling, lengths, None if aligned or of_parts else 1.0)
            if samples.weights.numel() == 0:
                continue
            terms = gradient[index][..., None, None] * samples.weights / float(samples.count)
            places = _of_channels(mapping[index] if of_parts else mapping, lengths[0] * lengths[1], samples.places)
            chosen = samples.inside.expand(terms.shape)
            yield image, places[chosen], terms[chosen]

    return _added(shape, gradient.dtype, parts())


def roi_align(x: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling: int, aligned: bool) -> Tensor:
    channels = torch.arange(x.shape[1])[:, None, None].expand(-1, height, width)
    return _aligned_bins(x, rois, scale, (height, width), sampling, channels, aligned, False)


def roi_align_backward(
    gradient: Tensor, rois: Tensor, scale: float, height: int, width: int, *rest: Any
) -> Tensor:
    *shape, sampling, aligned = rest
    channels = torch.arange(shape[1])[:, None, None].expand(-1, height, width)
    return _aligned_gradient(gradient, rois, scale, (height, width), sampling, tuple(shape), channels, aligned, False)


def ps_roi_align(x: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling: int) -> tuple[Tensor, Tensor]:
    if x.dim() != 4 or x.shape[1] % (height * width):
        return NotImplemented
    channels = torch.arange(x.shape[1]).reshape(-1, height, width)
    result = _aligned_bins(x, rois, scale, (height, width), sampling, channels, False, True)
    return result if result is NotImplemented else (result, channels.int().expand(len(rois), -1, -1, -1).contiguous())


def ps_roi_align_backward(
    gradient: Tensor, rois: Tensor, mapping: Tensor, scale: float, height: int, width: int, sampling: int, *shape: int
) -> Tensor:
    return _aligned_gradient(gradient, rois, scale, (height, width), sampling, shape, mapping.long(), False, True)


# Windows of elements


def _whole(values: Tensor) -> Tensor:
    """Rounded to whole numbers, ties away from zero."""
    whole = values.trunc()
    away = torch.where(values < 0, -1.0, 1.0)
    return torch.where((values - whole).abs() >= 0.5, whole + away, whole)


def _windows(
    region: Tensor, bins: Sizes, more: int, lengths: Sizes, last: int
) -> Iterator[tuple[Sizes, tuple[slice, slice]]]:
    """Each bin of a region, (row, column), and what it covers along y and x, within 0 ... length - last."""
    result = []
    for axis in (0, 1):
        start, end = (int(region[place].item()) for place in (1 - axis, 3 - axis))
        extent = torch.tensor(float(max(end - start + more, 1)), dtype=region.dtype)
        index = torch.arange(bins[axis] + 1).to(region.dtype)
        edges = index * (extent / float(bins[axis]))
        begins, ends = ([int(edge) + start for edge in item.tolist()] for item in (edges[:-1].floor(), edges[1:].ceil()))
        limit = lengths[axis] - last
        result.append([slice(min(max(i, 0), limit), min(max(j, 0), limit)) for i, j in zip(begins, ends, strict=True)])
    along_y, along_x = result
    for row, y in enumerate(along_y):
        for column, x in enumerate(along_x):
            yield (row, column), (y, x)


def roi_pool(x: Tensor, rois: Tensor, scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    images = _check_images(rois, x.shape[0])
    if images is None or x.dim() != 4 or rois.dtype is not x.dtype:
        return NotImplemented
    values, places = [], []
    everywhere = torch.arange(x.shape[2] * x.shape[3]).reshape(x.shape[2:])
    for image, region in zip(images, _whole(rois[:, 1:] * scale), strict=True):
        for _, covered in _windows(region, (height, width), 1, (x.shape[2], x.shape[3]), 0):
            window = x[image, :, *covered].flatten(1)
            if window.numel() == 0:
                values.append(torch.zeros(x.shape[1], dtype=x.dtype))
                places.append(torch.full((x.shape[1],), -1))
                continue
            window = torch.where(window.isnan(), float("-inf"), window)  # what is larger than no value is not chosen
            chosen = window.argmax(1, keepdim=True)
            value = window.gather(1, chosen)[:, 0]
            values.append(value)
            place = everywhere[covered].flatten()[chosen[:, 0]]
            places.append(torch.where(value == float("-inf"), -1, place))
    shape = (len(images), height, width, x.shape[1])
    if not values:
        return x.new_zeros(0, x.shape[1], height, width), torch.zeros(0, x.shape[1], height, width, dtype=torch.int32)
    result, found = (torch.stack(item).reshape(shape).permute(0, 3, 1, 2).contiguous() for item in (values, places))
    return result, found.int()


def roi_pool_backward(
    gradient: Tensor, rois: Tensor, chosen: Tensor, scale: float, height: int, width: int, *shape: int
) -> Tensor:
    images = _check_images(rois, shape[0])
    if images is None or rois.dtype is not gradient.dtype:
        return NotImplemented
    channels = torch.arange(shape[1])[:, None, None]

    def parts() -> Iterator[tuple[int, Tensor, Tensor]]:
        for index, image in enumerate(images):
            counts = chosen[index] >= 0
            yield image, (channels * (shape[2] * shape[3]) + chosen[index])[counts], gradient[index][counts]

    return _added(shape, gradient.dtype, parts())


def ps_roi_pool(x: Tensor, rois: Tensor, scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    images = _check_images(rois, x.shape[0])
    if images is None or x.dim() != 4 or rois.dtype is not x.dtype or x.shape[1] % (height * width):
        return NotImplemented
    channels = torch.arange(x.shape[1]).reshape(-1, height, width)
    values = []
    for image, region in zip(images, _whole(rois[:, 1:] * scale), strict=True):
        for place, covered in _windows(region, (height, width), 0, (x.shape[2], x.shape[3]), 1):
            window = x[image, channels[:, *place], *covered].flatten(1)
            size = window.shape[1]
            values.append(window.sum(1) / float(size) if size else torch.zeros(len(channels), dtype=x.dtype))
    if not values:
        return x.new_zeros(0, *channels.shape), torch.zeros(0, *channels.shape, dtype=torch.int32)
    result = torch.stack(values).reshape(len(images), height, width, len(channels)).permute(0, 3, 1, 2).contiguous()
    return result, channels.int().expand(len(images), -1, -1, -1).contiguous()


def ps_roi_pool_backward(
    gradient: Tensor, rois: Tensor, mapping: Tensor, scale: float, height: int, width: int, *shape: int
) -> Tensor:
    images = _check_images(rois, shape[0])
    if images is None or rois.dtype is not gradient.dtype:
        return NotImplemented
    everywhere, area = torch.arange(shape[2] * shape[3]).reshape(shape[2:]), shape[2] * shape[3]

    def parts() -> Iterator[tuple[int, Tensor, Tensor]]:
        for index, (image, region) in enumerate(zip(images, _whole(rois[:, 1:] * scale), strict=True)):
            for place, covered in _windows(region, (height, width), 0, (shape[2], shape[3]), 0):
                places = everywhere[covered].flatten()
                if len(places):
                    share = gradient[index, :, *place] / float(len(places))
                    own = mapping[index, :, *place].long()[:, None] * area + places
                    yield image, own, share[:, None].expand(own.shape)

    return _added(shape, gradient.dtype, parts())
