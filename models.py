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


class P4Conv2d(nn.Conv2d):
    """A 3×3 p4 convolution: each of its `nf` filters is used rotated by 0°, 90°, 180° and 270°: 4·`nf` channels, filter by filter.

    It takes the 4·`ni` channels of another p4 convolution; or, with `lift`, the `ni` channels of the input image (first layer: no rotation
    axis). It has a quarter of the weights of an ordinary convolution of its width
    (Cohen and Welling 2016, "Group Equivariant Convolutional Networks", sections 4.2 and 6).
    """
    def __init__(self, ni, nf, padding=0, lift=False):
        rotations = 1 if lift else 4
        super().__init__(ni*rotations, nf, 3, padding=padding, bias=False)
        self.rotations = rotations

    def forward(self, x):
        w = self.weight.unflatten(1, (-1, self.rotations))                     # nf, ni, rotations in, 3, 3
        w = torch.stack([w.roll(r, 2).rot90(r, (3, 4)) for r in range(4)], 1)  # nf, rotations out, ni, rotations in, 3, 3
        w = w.flatten(2, 3).flatten(0, 1).to(memory_format=torch.channels_last)  # as the maps are: faster on a CPU
        return F.conv2d(x, w, padding=self.padding)


def block(conv, nf, pool, p):
    """`conv`, 2×2 max-pooling if `pool`, batch norm of `nf` channels, SiLU, dropout of `p`. Pooling comes first, so that batch norm, SiLU
    and dropout run on a quarter of the pixels.

    SiLU is x·sigmoid(x), a smooth ReLU (Ramachandran et al. 2017, "Searching for Activation Functions", where it is called Swish).
    """
    return nn.Sequential(conv, *[nn.MaxPool2d(2)]*pool, nn.BatchNorm2d(nf), nn.SiLU(), *[nn.Dropout(p)]*(p > 0))

def conv(ni, nf, pad=1, pool=False, p=0.):
    "A 3×3 convolution from `ni` to `nf` channels in a `block`."
    return block(nn.Conv2d(ni, nf, 3, padding=pad, bias=False), nf, pool, p)

def p4(ni, nf, pad=1, pool=False, lift=False, p=0.):
    "A p4 convolution in a `block`: from 4·`ni` channels (`ni` with `lift`) to 4·`nf`."
    return block(P4Conv2d(ni, nf, pad, lift), 4*nf, pool, p)

def head(nf, size):
    """From maps (`nf`, `size`, `size`) to ten logits: a global depthwise convolution, that is global pooling with a learned weight per
    channel and position, then a linear layer."""
    return nn.Conv2d(nf, nf, size, groups=nf, bias=False), nn.Flatten(), nn.Linear(nf, 10)


class Net(nn.Sequential):
    "Layers for images (n, 1, 28, 28); others raise a `ValueError`. A slice, such as `net[:-1]` for its features, is an `nn.Sequential`."
    def __getitem__(self, i): return nn.Sequential(*list(self)[i]) if isinstance(i, slice) else super().__getitem__(i)
    def forward(self, x):
        if x.shape[1:] != (1, 28, 28): raise ValueError(f'{type(self).__name__} takes images (n, 1, 28, 28), not {tuple(x.shape)}.')
        return super().forward(x)


class Model_1(Net):
    "The skeleton: two 3×3 convolutions on each of three scales, then one large kernel over the 6×6 map that is left."
    def __init__(self, channels=(8, 8, 8, 12, 8, 8)):
        a,b,c,d,e,f = channels
        super().__init__(
            conv(1, a, pad=0), conv(a, b, pad=0), nn.MaxPool2d(2),  # 26, 24, 12 pixels wide
            conv(b, c),        conv(c, d),        nn.MaxPool2d(2),  # 12, 12, 6
            conv(d, e),        conv(e, f),                          # 6
            nn.Conv2d(f, 10, 6), nn.Flatten())                      # 1


class Model_2(Net):
    """p4 convolutions, with `filters` filters in the six layers; a global depthwise convolution in place of the large kernel; dropout of
    `p` after each activation; on the middle 24×24 pixels, for speed."""
    def __init__(self, filters=(2, 2, 4, 8, 8, 8), p=.05):  # 8, 8, 16, 32, 32, 32 channels
        a,b,c,d,e,f = filters
        super().__init__(
            nn.ZeroPad2d(-2),                                                  # 24 pixels wide: a negative padding crops
            p4(1, a, pad=0, lift=True, p=p), p4(a, b, pad=0, pool=True, p=p),  # 22, 10
            p4(b, c, p=p),                   p4(c, d, pool=True, p=p),         # 10, 5
            p4(d, e, p=p),                   p4(e, f, p=p),                    # 5
            *head(4*f, 5))                                                     # 1


class Model_3(Model_2):
    "`Model_2` without dropout."
    def __init__(self): super().__init__(p=0.)


class Model_4(Model_2):
    "`Model_3` with fewer filters: less than half of the budget."
    def __init__(self): super().__init__((2, 2, 4, 4, 5, 5), p=0.)


class Model_5(Model_2):
    "`Model_3` with fewer filters, found on held-out images (results/README.md): about a third of the budget."
    def __init__(self): super().__init__((2, 2, 3, 3, 5, 4), p=0.)


@torch.no_grad()
def layers(model):
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
    try: model.eval()(torch.zeros(1, 1, 28, 28, device=next(model.parameters()).device))
    finally:
        for h in hooks: h.remove()
        model.train(training)
    return rows


def table(model):
    "`layers(model)` as text, with the total against the budget."
    lines = [f"{'layer':<18}{'output':>14}{'parameters':>12}{'receptive field':>17}"]
    for name,shape,n,field in layers(model): lines.append(f"{name:<18}{'×'.join(map(str, shape)):>14}{n:>12,}{field:>17}")
    return '\n'.join(lines + [f"{type(model).__name__ + ' in all':<32}{count(model):>12,}  (budget: fewer than {budget:,})"])
