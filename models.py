"""The nets: each takes normalized images (n, 1, 28, 28) and returns logits (n, 10), with fewer than 8,000 parameters.

    print(table(Model_2()))   # layer by layer: output shape, parameters, receptive field
"""
from copy import deepcopy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

budget = 8_000  # a model must have fewer parameters than this


def count(net):
    "Number of trainable parameters of `net`."
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


class P4Conv2d(nn.Conv2d):
    """A 3×3 p4 convolution: each of its `nf` filters is used rotated by 0°, 90°, 180° and 270°. (p4 is the group of
    these rotations and of all shifts.) From the 4·`ni` channels of another p4 convolution it makes 4·`nf`: the four
    rotations of filter 1, then those of filter 2, and so on. The first layer, with `lift`, makes them from the `ni`
    channels of an image. The weights are a quarter of an ordinary convolution's (Cohen and Welling 2016, "Group
    Equivariant Convolutional Networks", section 7).
    """
    def __init__(self, ni, nf, padding=0, lift=False):
        turns = 1 if lift else 4
        super().__init__(ni*turns, nf, 3, padding=padding, bias=False)
        self.turns,self.out_channels = turns,4*nf

    def forward(self, x):
        w = self.weight.unflatten(1, (-1, self.turns))  # filters, ni, turns, 3, 3
        # A filter has a slice for each rotation of its input. If the image is rotated by 90°, what was in the map of 0°
        # is in that of 90°. So to rotate a filter is to rotate its 3×3 slices, and to move each on by one.
        w = torch.stack([w.roll(r, 2).rot90(r, (3, 4)) for r in range(4)], 1)  # filters, 4, ni, turns, 3, 3
        w = w.flatten(2, 3).flatten(0, 1)  # channels out, channels in, 3, 3
        return F.conv2d(x, w, padding=self.padding)


def block(conv, nf, pool=None, p=0.):
    """`conv`, the layer `pool` if there is one, batch norm, SiLU, dropout of `p` if that is not zero.

    Pooling comes first, so that batch norm, SiLU and dropout run on a quarter of the pixels. SiLU is x·sigmoid(x),
    a smooth ReLU (Ramachandran et al. 2017, "Searching for Activation Functions", where it is called Swish).
    After a p4 convolution, batch norm has its own scale and bias for each rotation: from there on the net is free to
    treat the rotations differently, though they share filters. (So is the head. It must be, to tell 6 from 9.)
    """
    layers = [conv]
    if pool: layers.append(pool)
    layers += [nn.BatchNorm2d(nf), nn.SiLU()]
    if p: layers.append(nn.Dropout(p))
    return nn.Sequential(*layers)

def conv(ni, nf, pad=1, **kwargs):
    "A 3×3 convolution from `ni` to `nf` channels in a `block`."
    return block(nn.Conv2d(ni, nf, 3, padding=pad, bias=False), nf, **kwargs)

def p4(ni, nf, pad=1, lift=False, **kwargs):
    "A p4 convolution in a `block`: from 4·`ni` channels (`ni` with `lift`) to 4·`nf`."
    return block(P4Conv2d(ni, nf, pad, lift), 4*nf, **kwargs)

def head(nf, size):
    """From maps (`nf`, `size`, `size`) to ten logits: a global depthwise convolution, that is global pooling with a
    learned weight per channel and position, then a linear layer."""
    return nn.Conv2d(nf, nf, size, groups=nf, bias=False), nn.Flatten(), nn.Linear(nf, 10)


@torch.fx.wrap  # so that torch.fx can trace a net: it cannot look into an `if`
def check_size(x):
    if x.shape[1:] != (1, 28, 28): raise ValueError(f'The nets take images (n, 1, 28, 28), not {tuple(x.shape)}.')

class Net(nn.Sequential):
    """Layers for images (n, 1, 28, 28); others raise a `ValueError`. A slice, such as `net[1:]`, may take other shapes:
    it is an `nn.Sequential`."""
    def __getitem__(self, i): return nn.Sequential(*self)[i]
    def forward(self, x):
        check_size(x)
        # The same numbers, but with the one channel last in memory; so all maps are channels-last: faster on a CPU.
        x = x.reshape(-1, 28, 28, 1).permute(0, 3, 1, 2)
        return super().forward(x)


class Model_1(Net):
    "The skeleton: two 3×3 convolutions on each of three scales, then one large kernel over the 6×6 map that is left."
    def __init__(self, channels=(8, 8, 8, 12, 8, 8)):
        a,b,c,d,e,f = channels
        super().__init__(
            conv(1, a, pad=0),                   # 26 pixels wide
            conv(a, b, pad=0), nn.MaxPool2d(2),  # 24, 12
            conv(b, c),                          # 12
            conv(c, d), nn.MaxPool2d(2),         # 12, 6
            conv(d, e),                          # 6
            conv(e, f),                          # 6
            nn.Conv2d(f, 10, 6), nn.Flatten())   # 1


class Model_2(Net):
    """p4 convolutions, with `filters` filters in the six layers; a global depthwise convolution in place of the large
    kernel; dropout of `p` after each activation; on the middle 24×24 pixels, for speed."""
    def __init__(self, filters=(2, 2, 4, 8, 8, 8), p=.05):  # 8, 8, 16, 32, 32, 32 channels
        a,b,c,d,e,f = filters
        super().__init__(
            nn.ZeroPad2d(-2),                            # 24 pixels wide: a negative padding crops
            p4(1, a, pad=0, lift=True, p=p),             # 22
            p4(a, b, pad=0, pool=nn.MaxPool2d(2), p=p),  # 20, 10
            p4(b, c, p=p),                               # 10
            p4(c, d, pool=nn.MaxPool2d(2), p=p),         # 10, 5
            p4(d, e, p=p),                               # 5
            p4(e, f, p=p),                               # 5
            *head(4*f, 5))                               # 1


class Model_3(Model_2):
    "`Model_2` without dropout."
    def __init__(self): super().__init__(p=0.)


class Model_4(Model_2):
    "`Model_3` with fewer filters: less than half of the budget."
    def __init__(self): super().__init__((2, 2, 4, 4, 5, 5), p=0.)


class Model_5(Model_2):
    "`Model_3` with fewer filters, found on held-out images (results/README.md): about a third of the budget."
    def __init__(self): super().__init__((2, 2, 3, 3, 5, 4), p=0.)


nets = {name: net for name,net in globals().items() if name.startswith('Model_')}

def create(model):
    "A new net of `model`: the name of one here, or a class or function that takes no arguments and returns a net."
    if isinstance(model, nn.Module) or not (model in nets or callable(model)):
        raise TypeError(f'model is {", ".join(nets)}, or a class or function that makes a net; not {model!r:.60}.')
    return nets.get(model, model)()


@torch.no_grad()
def layers(net):
    """A row (layer, output shape, parameters, receptive field) for every call of a layer in a forward pass of `net`.

    The receptive field is the width in input pixels of what one output value depends on, padding counted in
    (Araujo et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks", eq. 2). It is known as long as
    each layer takes just what the layer before gives; from there on, as after a residual path, it is `None`.
    """
    calls = []
    def note(layer, args, output): calls.append((layer, args[0], output))
    net = deepcopy(net).cpu().eval()
    for layer in net.modules():
        if not list(layer.children()): layer.register_forward_hook(note)
    image = torch.zeros(1, 1, 28, 28)
    net(image)
    rows = []
    before = calls[0][1]  # what the first layer takes
    field = 1 if before.shape == image.shape else None
    jump = 1  # distance in input pixels between neighbours in the current map
    for layer,x,output in calls:
        def size(name): return int(np.max(getattr(layer, name, 1)))
        takes_all = isinstance(layer, (nn.Flatten, nn.AdaptiveAvgPool2d))
        kernel = x.shape[-1] if takes_all else size('kernel_size')
        if x is not before: field = None
        if field: field += (kernel-1)*size('dilation')*jump
        jump *= size('stride')
        name = type(layer).__name__
        if isinstance(layer, nn.Dropout): name += f' {layer.p}'
        shape = getattr(output, 'shape', ())[1:]
        rows.append((name, tuple(shape), count(layer), field))
        before = output
    return rows


def table(net):
    "`layers(net)` as text, with the total against the budget."
    net = deepcopy(net).cpu()
    net.eval()(torch.zeros(1, 1, 28, 28))  # lazy layers find their sizes
    lines = [f"{'layer':<18}{'output':>14}{'parameters':>12}{'receptive field':>17}"]
    for name,shape,n,field in layers(net):
        output = '×'.join(map(str, shape))
        lines.append(f'{name:<18}{output:>14}{n:>12,}{field or "–":>17}')
    label = f'{type(net).__name__} in all'
    total = f'{label:<32}{count(net):>12,}  (budget: fewer than {budget:,})'
    return '\n'.join([*lines, total])
