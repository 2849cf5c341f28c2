"""The nets: each takes normalized images (n, 1, 28, 28) and returns logits (n, 10), with fewer than 8,000 parameters.

    print(table(Model_2()))   # layer by layer: output shape, parameters, receptive field
"""
import torch
from torch import nn
from torch.nn import functional as F

budget = 8_000  # a model must have fewer parameters than this


def count(model):
    "Number of trainable parameters of `model`."
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def conv(ni, nf, pad=1, pool=False, norm=True):
    """3×3 convolution from `ni` to `nf` channels, 2×2 max-pooling if `pool`, batch norm if `norm`, ReLU.

    Only without batch norm, which brings its own, has the convolution a bias. Pooling stands before batch norm and ReLU,
    which then have a quarter of the pixels to do.
    """
    pooling = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(nn.Conv2d(ni, nf, 3, padding=pad, bias=not norm), *pooling, *([nn.BatchNorm2d(nf)] if norm else []), nn.ReLU(inplace=True))


def separable(ni, nf, pad=1, pool=False):
    """What `conv` does on fewer parameters: a 3×3 convolution of each channel by itself and batch norm, then a 1×1 convolution
    across channels (Howard et al. 2017, "MobileNets", section 3.1, but without a ReLU between the two)."""
    pooling = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(nn.Conv2d(ni, ni, 3, padding=pad, groups=ni, bias=False), nn.BatchNorm2d(ni),
                         nn.Conv2d(ni, nf, 1, bias=False), *pooling, nn.BatchNorm2d(nf), nn.ReLU(inplace=True))


class TurnedConv2d(nn.Conv2d):
    """A 3×3 convolution with each of its `nf` filters used at 0°, 90°, 180° and 270°: 4·`nf` channels come out, filter by filter.

    4·`ni` channels go in, of such a layer before; or, with `lift`, the `ni` channels of an image, which have no angle. A layer has a
    quarter of the weights of an ordinary one of its width (Cohen and Welling 2016, "Group Equivariant Convolutional Networks",
    sections 4 and 6: the group p4).
    """
    def __init__(self, ni, nf, padding=0, lift=False):
        super().__init__(ni * (1 if lift else 4), nf, 3, padding=padding, bias=False)
        self.angles = 1 if lift else 4
    def forward(self, x):
        w = self.weight.unflatten(1, (-1, self.angles))                                  # nf, ni, angle in, 3, 3
        w = torch.stack([w.roll(r, 2).rot90(r, (3, 4)) for r in range(4)], 1)            # nf, angle out, ni, angle in, 3, 3
        return F.conv2d(x, w.flatten(2, 3).flatten(0, 1), padding=self.padding)


def turned(ni, nf, pad=1, pool=False, lift=False):
    "`conv` with turned filters: 4·`ni` channels in (`ni` with `lift`), 4·`nf` out."
    pooling = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(TurnedConv2d(ni, nf, pad, lift), *pooling, nn.BatchNorm2d(4*nf), nn.ReLU(inplace=True))


def head(nf, size):
    """The layers from a map (`nf`, `size`, `size`) to ten logits: global pooling that learns where to look, one large kernel
    per channel instead of the plain average, then batch norm and a linear layer."""
    return nn.Conv2d(nf, nf, size, groups=nf, bias=False), nn.BatchNorm2d(nf), nn.Flatten(), nn.Linear(nf, 10)


class Model_1(nn.Sequential):
    "The skeleton: two 3×3 convolutions on each of three scales, then one large kernel over the 6×6 map that is left."
    def __init__(self): super().__init__(
        conv( 1,  8, pad=0), conv( 8,  8, pad=0), nn.MaxPool2d(2),   # 26, 24, 12 pixels wide: digits leave the rim empty
        conv( 8,  8),        conv( 8, 12),        nn.MaxPool2d(2),   # 12, 12, 6
        conv(12,  8),        conv( 8,  8),                           # 6
        nn.Conv2d(8, 10, 6), nn.Flatten())                           # 1


class Model_2(nn.Sequential):
    "`Model_1` with the large kernel replaced by global depthwise pooling and a linear layer; wider layers spend what that frees."
    def __init__(self): super().__init__(
        conv( 1,  8, pad=0), conv( 8,  8, pad=0, pool=True),         # 26, 12 pixels wide
        conv( 8,  8),        conv( 8, 16, pool=True),                # 12, 6
        conv(16, 16),        conv(16, 16),                           # 6
        *head(16, 6))                                                # 1


class Model_3(nn.Sequential):
    "`Model_2` for speed: without the outer two pixels, where digits hardly reach, and without batch norm in its largest map."
    def __init__(self): super().__init__(
        nn.ZeroPad2d(-2),                                                 # 24 pixels wide: less than nothing padded is cropped
        conv( 1,  8, pad=0, norm=False), conv( 8,  8, pad=0, pool=True),  # 22, 10
        conv( 8,  8),                    conv( 8, 16, pool=True),         # 10, 5
        conv(16, 16),                    conv(16, 16),                    # 5
        *head(16, 5))                                                     # 1


class Model_4(nn.Sequential):
    "Less than half the parameters: after the first layer all convolutions are depthwise-separable, and can be wider for it."
    def __init__(self): super().__init__(
        nn.ZeroPad2d(-2),                                                       # 24 pixels wide
        conv( 1,  8, pad=0, norm=False), separable( 8, 16, pad=0, pool=True),   # 22, 10
        separable(16, 16),               separable(16, 24, pool=True),          # 10, 5
        separable(24, 32),                                                      # 5
        *head(32, 5))                                                           # 1


@torch.no_grad()
def layers(model, size=28):
    """A row (layer, output shape, parameters, receptive field) for every layer of a sequential `model`.

    The receptive field is the width in input pixels of what one output value depends on, padding counted in
    (Araujo et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks", eq. 2).
    """
    rows, field, jump = [], 1, 1  # jump: distance in input pixels between neighbours in the current map
    def side(m, name):
        o = getattr(m, name, 1)
        return o[0] if isinstance(o, tuple) else o
    training, leaves = model.training, [m for m in model.modules() if not list(m.children())]
    def row(m, x, y):
        nonlocal field, jump
        whole = isinstance(m, (nn.Flatten, nn.AdaptiveAvgPool2d))  # these gather the whole map that is left
        kernel,stride,dilation = (x[0].shape[-1],1,1) if whole else (side(m, o) for o in ('kernel_size', 'stride', 'dilation'))
        field,jump = field + dilation*(kernel-1)*jump, jump*stride
        rows.append((type(m).__name__, tuple(y.shape[1:]), count(m), field))
    hooks = [m.register_forward_hook(row) for m in leaves]
    try: model.eval()(torch.zeros(1, 1, size, size, device=next(model.parameters()).device))
    finally:
        for h in hooks: h.remove()
        model.train(training)
    return rows


def table(model):
    "`layers(model)` as text, with the total against the budget."
    lines = [f"{'layer':<18}{'output':>14}{'parameters':>12}{'receptive field':>17}"]
    for name,shape,n,field in layers(model): lines.append(f"{name:<18}{'×'.join(map(str, shape)):>14}{n:>12,}{field:>17}")
    return '\n'.join(lines + [f"{type(model).__name__ + ' in all':<32}{count(model):>12,}  (budget: fewer than {budget:,})"])
