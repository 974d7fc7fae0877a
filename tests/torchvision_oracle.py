"""torchvision's operators written out, number by number, in a NumPy type of one's choice: every operation rounds to it.

Where torchvision is not installed, or not built for the torch at hand, these stand for its operators.
"""

import math

import numpy as np
import torch

try:
    import torchvision

    IS_INSTALLED = bool(torchvision.ops.nms)
except (ImportError, RuntimeError):  # a build for CUDA raises RuntimeError beside a torch for the CPU
    IS_INSTALLED = False


def total(kind, terms):
    result = kind(0)
    for term in terms:
        result = kind(result + term)
    return result


def corners(kind, y, x, height, width):
    """(row, column, weight) of the four neighbors; none outside."""
    if not (-1 <= y <= height and -1 <= x <= width):
        return []
    sides = []
    for c, length in ((y, height), (x, width)):
        c = max(c, kind(0))
        low = int(c)
        if low >= length - 1:
            low = high = length - 1
            c = kind(low)
        else:
            high = low + 1
        part = kind(c - kind(low))
        sides.append(((low, kind(1 - part)), (high, part)))
    return [(i, j, kind(a * b)) for i, a in sides[0] for j, b in sides[1]]


def samples(kind, roi, scale, bins, sampling, offset, at_least, bin_y, bin_x):
    """The places (y, x) of a bin's samples, and what their sum is divided by."""
    axes, count = [], 1
    for axis, index in ((0, bin_y), (1, bin_x)):
        start = kind(kind(roi[2 - axis] * scale) - offset)
        extent = kind(kind(kind(roi[4 - axis] * scale) - offset) - start)
        extent = max(extent, kind(at_least)) if at_least is not None else extent
        size = kind(extent / kind(bins[axis]))
        grid = sampling if sampling > 0 else math.ceil(size)
        count *= grid
        corner = kind(start + kind(kind(index) * size))
        axes.append([kind(corner + kind(kind(kind(i + 0.5) * size) / kind(grid))) for i in range(grid)])
    return [(y, x) for y in axes[0] for x in axes[1]], count


def each_bin(rois, channels, bins):
    for n in range(len(rois)):
        for c in range(channels):
            for i in range(bins[0]):
                for j in range(bins[1]):
                    yield n, c, i, j


def align(kind, x, rois, scale, bins, sampling, aligned, parts, gradient=None):
    """Forward, or the gradient of x; `parts` reads a channel for each bin."""
    offset, at_least = (kind(0.5), None) if aligned or parts else (kind(0), 1.0)
    scale, channels = kind(scale), x.shape[1] // (bins[0] * bins[1] if parts else 1)
    out, back = np.zeros((len(rois), channels, *bins), kind), np.zeros(x.shape, kind)
    for n, c, i, j in each_bin(rois, channels, bins):
        image, channel = int(rois[n, 0]), (c * bins[0] + i) * bins[1] + j if parts else c
        places, count = samples(kind, rois[n], scale, bins, sampling, offset, at_least, i, j)
        values = []
        for y, z in places:
            found = corners(kind, y, z, *x.shape[2:])
            values.append(total(kind, [kind(w * x[image, channel, a, b]) for a, b, w in found]))
            for a, b, w in found if gradient is not None else ():
                term = kind(kind(gradient[n, c, i, j] * w) / kind(count))
                back[image, channel, a, b] = kind(back[image, channel, a, b] + term)
        out[n, c, i, j] = total(kind, values) / kind(count if parts else max(count, 1))
    return out if gradient is None else back


def whole(value):
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), value))


def window(kind, roi, scale, bins, more, lengths, last, i, j):
    ranges = []
    for axis, index in ((0, i), (1, j)):
        start, end = (whole(kind(roi[place - axis] * scale)) for place in (2, 4))
        size = kind(kind(max(end - start + more, 1)) / kind(bins[axis]))
        edges = math.floor(kind(kind(index) * size)) + start, math.ceil(kind(kind(index + 1) * size)) + start
        ranges.append(range(*(min(max(edge, 0), lengths[axis] - last) for edge in edges)))
    return [(a, b) for a in ranges[0] for b in ranges[1]]


def pool(kind, x, rois, scale, bins, parts, gradient=None):
    """Forward (values and where they are from), or the gradient of x."""
    scale, channels = kind(scale), x.shape[1] // (bins[0] * bins[1] if parts else 1)
    out, back = np.zeros((len(rois), channels, *bins), kind), np.zeros(x.shape, kind)
    places = np.full(out.shape, -1, np.int32)
    for n, c, i, j in each_bin(rois, channels, bins):
        image, channel = int(rois[n, 0]), (c * bins[0] + i) * bins[1] + j if parts else c
        last = 1 if parts and gradient is None else 0
        inside = window(kind, rois[n], scale, bins, 0 if parts else 1, x.shape[2:], last, i, j)
        if parts:
            places[n, c, i, j] = channel
            if inside:
                out[n, c, i, j] = total(kind, [x[image, channel, a, b] for a, b in inside]) / kind(len(inside))
        elif inside:
            a, b = max(inside, key=lambda place: float(x[image, channel, place[0], place[1]]))
            out[n, c, i, j], places[n, c, i, j] = x[image, channel, a, b], a * x.shape[3] + b
            inside = [(a, b)]
        for a, b in inside if gradient is not None else ():
            term = kind(gradient[n, c, i, j] / kind(len(inside)))
            back[image, channel, a, b] = kind(back[image, channel, a, b] + term)
    return (out, places) if gradient is None else back


def nms(kind, boxes, scores, threshold):
    area = [kind(kind(b[2] - b[0]) * kind(b[3] - b[1])) for b in boxes]
    order, kept = sorted(range(len(boxes)), key=lambda i: -scores[i]), []
    while order:
        best, *order = order
        kept.append(best)
        rest = []
        for other in order:
            a, b = boxes[best], boxes[other]
            sides = [max(kind(0), kind(min(a[k + 2], b[k + 2]) - max(a[k], b[k]))) for k in (0, 1)]
            common = kind(sides[0] * sides[1])
            if not kind(common / kind(kind(area[best] + area[other]) - common)) > threshold:
                rest.append(other)
        order = rest
    return np.array(kept, np.int64)


def deform(kind, x, offset, mask, kernel, stride, padding, dilation, groups, gradient=None):
    """Columns; or, of a gradient of these, those of x, offset and mask."""
    images, channels, height, width = x.shape
    rows, columns, taps = *offset.shape[2:], kernel * kernel
    out, back = np.zeros((images, channels * taps, rows, columns), kind), np.zeros(x.shape, kind)
    of_offset, of_mask = np.zeros(offset.shape, kind), np.zeros((images, groups * taps, rows, columns), kind)
    for n, c, k, i, j in np.ndindex(images, channels, taps, rows, columns):
        group = c // (channels // groups)
        place, first = (n, group * taps + k, i, j), 2 * (group * taps + k)
        factor = kind(1) if mask is None else mask[place]
        y = kind(kind(i * stride - padding + k // kernel * dilation) + offset[n, first, i, j])
        z = kind(kind(j * stride - padding + k % kernel * dilation) + offset[n, first + 1, i, j])
        low, left = math.floor(y), math.floor(z)
        part, rest = kind(y - kind(low)), kind(z - kind(left))

        def read(a, b, image=x[n, c]):
            return image[a, b] if 0 <= a < height and 0 <= b < width else kind(0)

        v = [[read(low + a, left + b) for b in (0, 1)] for a in (0, 1)]
        sides = (kind(1 - part), part), (kind(1 - rest), rest)
        terms = [kind(kind(sides[0][a] * sides[1][b]) * v[a][b]) for a in (0, 1) for b in (0, 1)]
        between = total(kind, terms) if -1 < y < height and -1 < z < width else kind(0)
        out[n, c * taps + k, i, j] = factor * between
        if gradient is None:
            continue
        g = gradient[n, c * taps + k, i, j]
        along_y = kind(rest * kind(v[1][1] - v[0][1])) + kind(kind(1 - rest) * kind(v[1][0] - v[0][0]))
        along_x = kind(part * kind(v[1][1] - v[1][0])) + kind(kind(1 - part) * kind(v[0][1] - v[0][0]))
        for more, slope in ((0, along_y), (1, along_x)):
            of_offset[n, first + more, i, j] += kind(kind(factor * kind(slope)) * g)
        of_mask[place] += kind(g * between)
        for a in (low, low + 1):
            for b in (left, left + 1):
                far = kind(abs(kind(y - kind(a)))), kind(abs(kind(z - kind(b))))
                if 0 <= a < height and 0 <= b < width and max(far) < 1:
                    weight = kind(kind(1 - far[0]) * kind(1 - far[1]))
                    back[n, c, a, b] += kind(kind(factor * weight) * g)
    return out if gradient is None else (back, of_offset, of_mask)


# As operators


_SIZES = "SymInt pooled_height, SymInt pooled_width"
_BINS = f"Tensor rois, float spatial_scale, {_SIZES}"
_SHAPE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_NUMBERS = ", ".join(f"SymInt {name}_{axis}" for name in ("stride", "pad", "dilation") for axis in "hw")
_OPERANDS = "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, " + _NUMBERS
_REST = "SymInt groups, SymInt offset_groups, bool use_mask"
_MAPPED = f"Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, {_SIZES}"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align(Tensor input, {_BINS}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward(Tensor grad, {_BINS}, {_SHAPE}, int sampling_ratio, bool aligned) -> Tensor",
    f"ps_roi_align(Tensor input, {_BINS}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({_MAPPED}, int sampling_ratio, {_SHAPE}) -> Tensor",
    f"roi_pool(Tensor input, {_BINS}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({_MAPPED.replace('channel_mapping', 'argmax')}, {_SHAPE}) -> Tensor",
    f"ps_roi_pool(Tensor input, {_BINS}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({_MAPPED}, {_SHAPE}) -> Tensor",
    f"deform_conv2d({_OPERANDS}, {_REST}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_OPERANDS}, {_REST}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _stand_in():
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)

    def implement(name, function):
        def run(*args):
            kind = args[0].numpy().dtype.type
            result = function(kind, *(item.numpy() if isinstance(item, torch.Tensor) else item for item in args))
            return tuple(map(torch.from_numpy, result)) if isinstance(result, tuple) else torch.from_numpy(result)

        library.impl(name, run, "CPU")

    def mapping(x, rois, bins):
        channels = np.arange(x.shape[1], dtype=np.int32).reshape(-1, *bins)
        return np.broadcast_to(channels, (len(rois), *channels.shape)).copy()

    def like(shape, kind):
        return np.zeros(shape, kind)

    implement("nms", nms)
    implement("roi_align", lambda t, x, r, s, h, w, n, a: align(t, x, r, s, (h, w), n, a, False))

    def aligned_backward(kind, g, r, s, h, w, *rest):
        *shape, n, aligned = rest
        return align(kind, like(shape, kind), r, s, (h, w), n, aligned, False, g)

    implement("_roi_align_backward", aligned_backward)
    implement("ps_roi_align", lambda t, x, r, s, h, w, n: (align(t, x, r, s, (h, w), n, 0, True), mapping(x, r, (h, w))))
    implement(
        "_ps_roi_align_backward", lambda t, g, r, m, s, h, w, n, *shape: align(t, like(shape, t), r, s, (h, w), n, 0, True, g)
    )
    implement("roi_pool", lambda t, x, r, s, h, w: pool(t, x, r, s, (h, w), False))
    implement("ps_roi_pool", lambda t, x, r, s, h, w: pool(t, x, r, s, (h, w), True))
    implement("_ps_roi_pool_backward", lambda t, g, r, m, s, h, w, *shape: pool(t, like(shape, t), r, s, (h, w), True, g))

    def pooled_backward(kind, g, r, chosen, s, h, w, *shape):
        back = like((*shape[:2], shape[2] * shape[3]), kind)
        for n, c, i, j in each_bin(r, shape[1], (h, w)):
            if chosen[n, c, i, j] >= 0:
                back[int(r[n, 0]), c, chosen[n, c, i, j]] += g[n, c, i, j]
        return back.reshape(shape)

    implement("_roi_pool_backward", pooled_backward)
    return library


_KEPT = None if IS_INSTALLED else _stand_in()
