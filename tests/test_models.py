"The nets: their budget, shapes, gradients, p4 convolutions, and the receptive fields that `layers` computes."
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models import Model_1, Model_2, Model_3, Model_4, Model_5, P4Conv2d, budget, count, layers, table

nets = [v for k,v in vars(models).items() if k.startswith('Model_')]

@pytest.mark.parametrize('net, n', [(Model_1, 6_522), (Model_2, 7_596), (Model_3, 7_596), (Model_4, 3_532), (Model_5, 2_684)])
def test_fewer_than_8000_parameters(net, n): assert sum(p.numel() for p in net().parameters()) == count(net()) == n < 8_000 == budget

@pytest.mark.parametrize('net', nets)
@pytest.mark.parametrize('n', [1, 2, 7])
def test_logits_and_gradients_for_any_batch(net, n):
    net = net()
    y = net(torch.randn(n, 1, 28, 28))  # in training mode, as graders call it
    F.cross_entropy(y, torch.arange(n)).backward()
    assert y.shape == (n, 10) and all(p.grad.abs().max() > 0 for p in net.parameters())
    assert net.eval()(torch.randn(n, 1, 28, 28)).shape == (n, 10)

@pytest.mark.parametrize('net', nets)
def test_other_images_are_refused_and_a_slice_gives_the_features(net):
    net = net().eval()
    for shape in ((2, 1, 32, 32), (2, 3, 28, 28), (1, 28, 28)):
        with pytest.raises(ValueError, match=r'^Model_\d takes images \(n, 1, 28, 28\), not \(.*\)\.$'): net(torch.zeros(shape))
    x = torch.randn(3, 1, 28, 28)
    assert type(net[:-1]) is nn.Sequential and torch.equal(net[-1](net[:-1](x)), net(x))

def rotated(x): return x.unflatten(1, (-1, 4)).roll(1, 2).flatten(1, 2).rot90(1, (2, 3))

@pytest.mark.parametrize('pad', [0, 1])
def test_p4_maps_rotate_with_the_image(pad):
    "An image rotated by 90° gives the same maps, each rotated and at the next rotation; also through a second layer."
    first,second = P4Conv2d(2, 3, pad, lift=True),P4Conv2d(3, 5, pad)
    x = torch.randn(4, 2, 9, 9)
    assert first(x).shape[1] == 12 and second(first(x)).shape[1] == 20
    assert torch.allclose(first(x.rot90(1, (2, 3))), rotated(first(x)), atol=1e-5)
    assert torch.allclose(second(first(x.rot90(1, (2, 3)))), rotated(second(first(x))), atol=1e-5)

def test_p4_convolutions_are_those_of_an_ordinary_convolution():
    layer,x = P4Conv2d(1, 2, lift=True),torch.randn(3, 1, 9, 9)
    for k in range(4): assert torch.allclose(layer(x)[:, k::4], F.conv2d(x, layer.weight.rot90(k, (2, 3))), atol=1e-5)

def fields(*ls): return [row[3] for row in layers(nn.Sequential(*ls))]

@pytest.mark.parametrize('net', nets)
def test_receptive_fields_against_gradients(net):
    "Independently: the width of the input pixels that one value in the middle of a map has a gradient for, on an image large enough."
    parts = [m for m in net().modules() if not list(m.children())]
    parts = parts[:[isinstance(m, nn.Flatten) for m in parts].index(True)]
    for i,m in enumerate(parts):  # all weights positive, averages for maxima: so that no path cancels or hides
        if isinstance(m, nn.Conv2d): nn.init.ones_(m.weight)
        if isinstance(m, nn.MaxPool2d): parts[i] = nn.AvgPool2d(2)
        if isinstance(m, (nn.BatchNorm2d, nn.SiLU, nn.Dropout)): parts[i] = nn.Identity()
    for i,want in enumerate(fields(*parts)):
        x = torch.ones(1, 1, 120, 120, requires_grad=True)
        y = nn.Sequential(*parts[:i+1])(x)
        y[0, 0, y.shape[2]//2, y.shape[3]//2].backward()
        assert int((x.grad[0, 0].abs().sum(0) > 0).sum()) == want, parts[i]

@pytest.mark.parametrize('net', nets)
def test_table(net):
    one = net()
    rows,text = layers(one),table(net())
    assert one.training and not any(m._forward_hooks or getattr(m, 'num_batches_tracked', 0) for m in one.modules())  # as it was
    assert sum(r[2] for r in rows) == count(net()) and rows[-1][1] == (10,) and rows[-1][3] >= 28  # the whole image is seen
    assert f'{count(net()):,}' in text and len(text.splitlines()) == len(rows) + 2
